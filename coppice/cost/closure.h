#pragma once

#include <string>
#include <vector>

namespace coppice::cost {

/// A measured expansion: tokens of continued pre-training divided by the tokens before, and eta.
struct ClosurePoint {
  double cpt_share = 0, eta = 0;
};

/// Gap closure eta = (L_E - L_up) / (L_E - L_N) at equal tokens, as a function of the share f of continued
/// pre-training: eta(f) = 1 - exp(-f / f0).
struct ClosureCurve {
  double f0 = 0;
  double rms_error = 0;  ///< root mean square error of eta over the points, n - 1 degrees of freedom; NaN for one point
  double worst_error = 0;  ///< largest |residual|
  bool at_bound = false;   ///< the points only show that f0 lies outside the range of the fit
  std::vector<ClosurePoint> points;
  std::string source;

  double eta(double cpt_share) const;
  double share_for(double eta) const;  ///< the f that reaches eta; eta in [0, 1)
};

inline constexpr double kSmallestF0 = 0.01, kLargestF0 = 100;

/// The least-squares curve through `points` (one or more).
ClosureCurve fit_closure(std::vector<ClosurePoint> points, std::string source);

/// The curve for parents chosen by gradient utility ||g||^2. Source arXiv:2604.19835v2 table 2b.
ClosureCurve published_utility_closure();
/// The curve for equal numbers of copies. Source arXiv:2604.19835v2 table 3, row uniform.
ClosureCurve published_uniform_closure();

}  // namespace coppice::cost
