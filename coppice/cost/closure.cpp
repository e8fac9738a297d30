#include "coppice/cost/closure.h"

#include <algorithm>
#include <cmath>

#include "coppice/base/check.h"

namespace coppice::cost {
namespace {

double eta_of(double cpt_share, double f0) { return -std::expm1(-cpt_share / f0); }

double squares(const std::vector<ClosurePoint>& points, double f0) {
  double sum = 0;
  for (const auto& [share, eta] : points) sum += (eta - eta_of(share, f0)) * (eta - eta_of(share, f0));
  return sum;
}

// Searches a grid first, because with outliers the sum of squares may have several minima.
double best_f0(const std::vector<ClosurePoint>& points) {
  constexpr int kCells = 400;
  const double low = std::log(kSmallestF0), cell = (std::log(kLargestF0) - low) / kCells;
  double best = kSmallestF0;
  for (int i = 0; i <= kCells; ++i) {
    const double f0 = std::exp(low + cell * i);
    if (squares(points, f0) < squares(points, best)) best = f0;
  }
  double width = cell;
  for (int i = 0; i < 60; ++i, width *= 0.7) {
    for (const double f0 : {best * std::exp(width), best * std::exp(-width)}) {
      const double clamped = std::clamp(f0, kSmallestF0, kLargestF0);
      if (squares(points, clamped) < squares(points, best)) best = clamped;
    }
  }
  return best;
}

}  // namespace

double ClosureCurve::eta(double cpt_share) const { return eta_of(cpt_share, f0); }
double ClosureCurve::share_for(double eta) const { return -f0 * std::log1p(-eta); }

ClosureCurve fit_closure(std::vector<ClosurePoint> points, std::string source) {
  COPPICE_CHECK(!points.empty());
  ClosureCurve curve{.f0 = best_f0(points), .source = std::move(source)};
  for (const auto& [share, eta] : points) {
    curve.worst_error = std::max(curve.worst_error, std::abs(eta - curve.eta(share)));
  }
  curve.rms_error =
      points.size() < 2 ? NAN : std::sqrt(squares(points, curve.f0) / static_cast<double>(points.size() - 1));
  curve.at_bound = curve.f0 < 1.01 * kSmallestF0 || curve.f0 > 0.99 * kLargestF0;
  curve.points = std::move(points);
  return curve;
}

ClosureCurve published_utility_closure() {
  return fit_closure({{0.10, 0.347}, {0.26, 0.640}, {0.50, 0.843}, {0.76, 0.885}, {1.00, 0.980}},
                     "arXiv:2604.19835v2 table 2b: ||g||^2 utility, one run a point, no seeds");
}

ClosureCurve published_uniform_closure() {
  return fit_closure({{0.26, 0.08}, {0.50, 0.52}, {0.76, 0.65}, {1.00, 0.78}},
                     "arXiv:2604.19835v2 table 3: uniform copies, one run a point, no seeds");
}

}  // namespace coppice::cost
