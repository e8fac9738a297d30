// Router methods that compute a row from other rows.

#include <algorithm>
#include <cmath>
#include <map>

#include "coppice/base/lane_sum.h"
#include "coppice/matrix/mean_std.h"
#include "coppice/methods/expert_decompose_detail.h"
#include "coppice/methods/purpose.h"
#include "coppice/methods/router_rows_detail.h"

namespace coppice::methods {
namespace {

using matrix::Dense;

/// Calls change(child, row) for every copy; `row` holds its parent's row.
template <class Change>
void change_copies(RouterView grown, RouterTensor tensor, const LayerPlan& layer, Change change) {
  if (tensor != RouterTensor::kWeight) return;
  for (size_t i = 0; i < layer.children.size(); ++i) {
    if (layer.children[i].copy > 0) change(layer.children[i], grown.row(i));
  }
}

// -- interpolate --------------------------------------------------------------

constexpr ParamSpec kInterpolateParams[] = {
    {.key = "alpha", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "weight of the next expert's row"},
    {.key = "clamped",
     .fallback = 0,
     .lo = 0,
     .hi = 1,
     .help = "for the last expert, 1: mix with itself, 0: mix with the first",
     .is_switch = true}};

void interpolate(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t, const Params& params, bool) {
  const auto alpha = static_cast<float>(params.get("alpha"));
  const float rest = 1.0f - alpha;
  const auto last = static_cast<size_t>(grown.experts_before() - 1);
  const size_t after_last = params.get("clamped") == 1 ? last : 0;
  change_copies(grown, tensor, layer, [&](const Child& child, std::span<float> row) {
    const auto next = grown.source_row(child.parent == last ? after_last : child.parent + 1);
    for (size_t c = 0; c < row.size(); ++c) row[c] = rest * row[c] + alpha * next[c];
  });
}

// -- scaled_copy, temperature_scaled ------------------------------------------

constexpr ParamSpec kScaledCopyParams[] = {
    {.key = "factor", .fallback = 0.95, .lo = -10.0, .hi = 10.0, .help = "factor of the parent's row"}};
constexpr ParamSpec kTemperatureScaledParams[] = {
    {.key = "factor", .fallback = 0.9, .lo = -10.0, .hi = 10.0, .help = "factor of the parent's row"}};

void scaled(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t, const Params& params, bool) {
  const auto factor = static_cast<float>(params.get("factor"));
  change_copies(grown, tensor, layer, [&](const Child&, std::span<float> row) {
    for (float& x : row) x *= factor;
  });
}

// -- adversarial --------------------------------------------------------------

constexpr ParamSpec kAdversarialParams[] = {
    {.key = "strength", .fallback = 0.1, .lo = 0.0, .hi = 1.0, .help = "fraction of the way to the mean row"}};

void adversarial(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t, const Params& params, bool) {
  const auto strength = static_cast<float>(params.get("strength"));
  const auto experts = static_cast<size_t>(grown.experts_before());
  std::vector<double> mean(static_cast<size_t>(grown.cols), 0.0);
  for (size_t e = 0; e < experts; ++e) {
    const auto row = grown.source_row(e);
    for (size_t c = 0; c < mean.size(); ++c) mean[c] += row[c];
  }
  for (double& x : mean) x /= static_cast<double>(experts);
  change_copies(grown, tensor, layer, [&](const Child&, std::span<float> row) {
    for (size_t c = 0; c < row.size(); ++c) row[c] -= strength * (row[c] - static_cast<float>(mean[c]));
  });
}

// -- orthogonal ---------------------------------------------------------------

constexpr ParamSpec kOrthogonalParams[] = {{.key = "lambda",
                                            .fallback = 0.1,
                                            .lo = 1e-6,
                                            .hi = 10.0,
                                            .help = "std of the noise, relative to the router's std"}};

/// The component of parent + noise orthogonal to the parent, scaled to the parent's norm. A row without an orthogonal
/// direction (one column, or zeros) stays the parent's.
void orthogonal(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t seed, const Params& params,
                bool) {
  if (tensor != RouterTensor::kWeight) return;
  const auto sigma = static_cast<float>(params.get("lambda") * matrix::mean_std(grown.source).std);
  std::vector<float> other(static_cast<size_t>(grown.cols));
  change_copies(grown, tensor, layer, [&](const Child& child, std::span<float> row) {
    row_rng(tensor, grown, layer, child, seed, kNoise).fill_normal(0, other.data(), other.size());
    for (size_t c = 0; c < other.size(); ++c) other[c] = row[c] + sigma * other[c];
    const double length = dot(row, row);
    if (length == 0 || row.size() < 2) return;
    for (int again = 0; again < 2; ++again) {  // the second pass removes what rounding left after the first
      const double along = dot(other, row) / length;
      for (size_t c = 0; c < other.size(); ++c) other[c] = static_cast<float>(other[c] - along * row[c]);
    }
    const double rest = dot(other, other);
    if (rest == 0) return;
    const double scale = std::sqrt(length / rest);
    for (size_t c = 0; c < other.size(); ++c) row[c] = static_cast<float>(scale * other[c]);
  });
}

// -- svd_perturb --------------------------------------------------------------

void svd_perturb(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t seed, const Params& params,
                 bool) {
  if (tensor != RouterTensor::kWeight) return;
  const Dense router{grown.experts_before(), grown.cols, std::vector<float>(grown.source.begin(), grown.source.end())};
  std::map<uint32_t, Dense> of_copy;
  change_copies(grown, tensor, layer, [&](const Child& child, std::span<float> row) {
    const auto stream = [&](uint32_t purpose) {
      return row_rng(tensor, grown, layer, {.parent = 0, .copy = child.copy}, seed, purpose);
    };
    if (!of_copy.contains(child.copy)) {
      of_copy[child.copy] = svd_perturbed(
          router, params, {stream(kSingularValues), stream(kLeftVectors), stream(kRightVectors), stream(kSmallValues)});
    }
    const Dense& changed = of_copy[child.copy];
    std::copy_n(changed.values.begin() + static_cast<std::ptrdiff_t>(child.parent) * changed.cols, changed.cols,
                row.begin());
  });
}

}  // namespace

extern constinit const RouterInit kRouterInterpolate{.name = "interpolate",
                                                     .apply = interpolate,
                                                     .params = kInterpolateParams,
                                                     .needs_bias = false,
                                                     .same_rows = false,
                                                     .draws = false,
                                                     .needs_partner = true,
                                                     .summary = "the parent's row mixed with the next expert's",
                                                     .source = kRouterPaper};

extern constinit const RouterInit kRouterScaledCopy{.name = "scaled_copy",
                                                    .apply = scaled,
                                                    .params = kScaledCopyParams,
                                                    .needs_bias = false,
                                                    .same_rows = false,
                                                    .draws = false,
                                                    .summary = "the parent's row times 0.95",
                                                    .source = kRouterPaper};

extern constinit const RouterInit kRouterOrthogonal{
    .name = "orthogonal",
    .apply = orthogonal,
    .params = kOrthogonalParams,
    .needs_bias = false,
    .same_rows = false,
    .summary = "a random row orthogonal to the parent's, with the same norm",
    .source = kRouterPaper};

extern constinit const RouterInit kRouterAdversarial{.name = "adversarial",
                                                     .apply = adversarial,
                                                     .params = kAdversarialParams,
                                                     .needs_bias = false,
                                                     .same_rows = false,
                                                     .draws = false,
                                                     .summary = "the parent's row moved towards the mean row",
                                                     .source = kRouterPaper};

extern constinit const RouterInit kRouterTemperatureScaled{.name = "temperature_scaled",
                                                           .apply = scaled,
                                                           .params = kTemperatureScaledParams,
                                                           .needs_bias = false,
                                                           .same_rows = false,
                                                           .draws = false,
                                                           .summary = "the parent's row times 0.9",
                                                           .source = kRouterPaper};

extern constinit const RouterInit kRouterSvdPerturb{
    .name = "svd_perturb",
    .apply = svd_perturb,
    .params = kSvdPerturbParams,
    .needs_bias = false,
    .same_rows = false,
    .summary = "the parent's row, from the router matrix with noise on its singular values and vectors",
    .source = kRouterPaper};

}  // namespace coppice::methods
