#include "coppice/methods/router_init.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "coppice/base/find_row.h"
#include "coppice/base/rng.h"
#include "coppice/families/family.h"
#include "coppice/matrix/mean_std.h"
#include "coppice/methods/purpose.h"
#include "coppice/methods/router_rows_detail.h"

namespace coppice::methods {
namespace {

using families::Role;

Role role_of(RouterTensor tensor) {
  switch (tensor) {
    case RouterTensor::kWeight: return Role::kRouter;
    case RouterTensor::kBias: return Role::kRouterBias;
    case RouterTensor::kSelectionBias: return Role::kSelectionBias;
  }
  return Role::kRouter;
}

/// x + noise; if rounding would remove the noise, x moves by one step of its type instead.
float add_noise(float x, float noise) {
  const float sum = x + noise;
  if (sum != x || noise == 0.0f) return sum;
  return std::nextafter(x, std::copysign(std::numeric_limits<float>::infinity(), noise));
}

/// Row of each copy += sigma * N(0, 1).
void add_row_noise(RouterView grown, const LayerPlan& layer, uint64_t seed, float sigma) {
  std::vector<float> noise(static_cast<size_t>(grown.cols));
  for (size_t i = 0; i < layer.children.size(); ++i) {
    const Child& child = layer.children[i];
    if (child.copy == 0) continue;
    row_rng(RouterTensor::kWeight, grown, layer, child, seed, kNoise).fill_normal(0, noise.data(), noise.size());
    const auto values = grown.row(i);
    for (size_t c = 0; c < noise.size(); ++c) values[c] = add_noise(values[c], sigma * noise[c]);
  }
}

// -- copy ---------------------------------------------------------------------

void copy(RouterView, RouterTensor, const LayerPlan&, uint64_t, const Params&, bool) {}

// -- copy_noise ---------------------------------------------------------------

constexpr ParamSpec kCopyNoiseParams[] = {{.key = "lambda",
                                           .fallback = 0.01,
                                           .lo = 0.0,
                                           .hi = 10.0,
                                           .help = "std of the noise as a fraction of the router's std"}};

void copy_noise(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t seed, const Params& params,
                bool) {
  if (tensor != RouterTensor::kWeight) return;
  add_row_noise(grown, layer, seed, static_cast<float>(params.get("lambda") * matrix::mean_std(grown.source).std));
}

// -- bias_only ----------------------------------------------------------------

constexpr double kGaussianScale = 0.1;   // of std(b)
constexpr double kSigmoidRange = 1.001;  // selection biases are added to sigmoids, which lie between 0 and 1

constexpr ParamSpec kBiasOnlyParams[] = {
    {.key = "delta",
     .fallback = 1e-3,
     .lo = 0.0,
     .hi = 1e4,
     .help = "the noise is uniform in (-delta, delta); with gaussian=1, its std if all biases are equal"},
    {.key = "gaussian", .fallback = 0, .lo = 0, .hi = 1, .help = "1: noise N(0, 0.1 std(b))", .is_switch = true},
    {.key = "shift", .fallback = 0.0, .lo = -1e6, .hi = 1e6, .help = "added to the bias of every new expert"},
    {.key = "noise_to_original",
     .fallback = 0,
     .lo = 0,
     .hi = 1,
     .help = "1: the originals get independent noise too",
     .is_switch = true}};

void bias_only(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t seed, const Params& params,
               bool has_router_bias) {
  if (tensor != (has_router_bias ? RouterTensor::kBias : RouterTensor::kSelectionBias)) return;
  const double delta = params.get("delta");
  const bool gaussian = params.get("gaussian") == 1;
  const double std = gaussian ? matrix::mean_std(grown.source).std : 0.0;
  const auto sigma = static_cast<float>(std > 0 ? kGaussianScale * std : delta);
  const auto shift = static_cast<float>(params.get("shift"));
  for (size_t i = 0; i < layer.children.size(); ++i) {
    const Child& child = layer.children[i];
    const bool is_original = child.copy == 0;
    if (is_original && params.get("noise_to_original") == 0) continue;
    const Rng rng = row_rng(tensor, grown, layer, child, seed, kNoise);
    const float noise = gaussian ? sigma * rng.normal(0) : static_cast<float>(delta * (2.0 * rng.uniform(0) - 1.0));
    float& bias = grown.row(i)[0];
    bias = add_noise(is_original ? bias : bias + shift, noise);
  }
}

// -- dormant ------------------------------------------------------------------

constexpr ParamSpec kDormantParams[] = {
    {.key = "depth",
     .fallback = 1e4,
     .lo = 1.0,
     .hi = 6e4,
     .help =
         "how far a router bias lies below the others, in logits; selection biases are lowered only as far as needed"}};

/// The largest number not above `x` that bf16, and therefore every wider dtype, can store.
float rounded_down(double x) {
  auto value = static_cast<float>(x);
  if (value > x) value = std::nextafter(value, -std::numeric_limits<float>::infinity());
  std::array<float, 1> stored = {value};
  std::array<std::byte, 2> bytes;
  io::from_f32(io::Dtype::kBf16, stored, bytes);
  io::to_f32(io::Dtype::kBf16, bytes, stored);
  return stored[0] <= value ? stored[0] : io::next_representable(io::Dtype::kBf16, stored[0], -1.0f);
}

void dormant(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t, const Params& params,
             bool has_router_bias) {
  if (tensor != (has_router_bias ? RouterTensor::kBias : RouterTensor::kSelectionBias)) return;
  const auto [least, most] = std::ranges::minmax_element(grown.source);
  const double largest = std::max(std::abs(double{*least}), std::abs(double{*most}));
  const double spread = double{*most} - double{*least};
  const double depth = spread + (has_router_bias ? params.get("depth") : kSigmoidRange) + 0x1p-20 * largest;
  for (size_t i = 0; i < layer.children.size(); ++i) {
    const Child& child = layer.children[i];
    if (child.copy > 0) grown.row(i)[0] = rounded_down(double{grown.source[child.parent]} - depth);
  }
}

// -- perturb_new_only ---------------------------------------------------------

constexpr ParamSpec kPerturbNewOnlyParams[] = {{.key = "lambda",
                                                .fallback = 0.02,
                                                .lo = 0.0,
                                                .hi = 10.0,
                                                .help = "std of the noise as a fraction of the std of the new rows"}};

void perturb_new_only(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t seed,
                      const Params& params, bool) {
  if (tensor != RouterTensor::kWeight) return;
  const auto cols = static_cast<size_t>(grown.cols);
  const auto siblings = layer.siblings(static_cast<int64_t>(grown.source.size() / cols));
  // Summed by parent, so that the bits do not depend on the order of the children.
  const auto new_rows = matrix::mean_std<float>([&](auto add) {
    for (size_t parent = 0; parent < siblings.size(); ++parent) {
      for (uint32_t copy = 1; copy < siblings[parent]; ++copy) add(grown.source.subspan(parent * cols, cols));
    }
  });
  add_row_noise(grown, layer, seed, static_cast<float>(params.get("lambda") * new_rows.std));
}

}  // namespace

extern constinit const RouterInit kRouterCopy{.name = "copy",
                                              .apply = copy,
                                              .params = {},
                                              .needs_bias = false,
                                              .same_rows = true,
                                              .draws = false,
                                              .summary = "the parent's row and biases",
                                              .source = kRouterPaper};

extern constinit const RouterInit kRouterCopyNoise{
    .name = "copy_noise",
    .apply = copy_noise,
    .params = kCopyNoiseParams,
    .needs_bias = false,
    .same_rows = false,
    .summary = "the parent's row plus Gaussian noise, relative to the router's standard deviation",
    .source = kRouterPaper};

extern constinit const RouterInit kRouterBiasOnly{
    .name = "bias_only",
    .apply = bias_only,
    .params = kBiasOnlyParams,
    .needs_bias = true,
    .same_rows = true,
    .summary = "the parent's row; noise on the router bias, or on the selection bias if there is no router bias",
    .source = kRouterPaper};

extern constinit const RouterInit kRouterDormant{
    .name = "dormant",
    .apply = dormant,
    .params = kDormantParams,
    .needs_bias = true,
    .same_rows = true,
    .draws = false,
    .summary = "the parent's row; a bias so low that no token chooses the copy",
    .source = "keeps the function at the start; a selection bias is lowered by 1 plus the spread of the biases"};

extern constinit const RouterInit kRouterPerturbNewOnly{
    .name = "perturb_new_only",
    .apply = perturb_new_only,
    .params = kPerturbNewOnlyParams,
    .needs_bias = false,
    .same_rows = false,
    .summary = "the parent's row plus Gaussian noise, relative to the standard deviation of the new rows",
    .source = kRouterPaper};

Rng row_rng(RouterTensor tensor, const RouterView& view, const LayerPlan& layer, const Child& child, uint64_t seed,
            uint32_t purpose) {
  return Rng({.seed = seed,
              .layer = static_cast<uint32_t>(layer.layer),
              .role = static_cast<uint32_t>(role_of(tensor)),
              .parent = child.parent,
              .copy = stream_copy(view.experts_before(), child.copy),
              .purpose = purpose});
}

std::span<const RouterInit> router_inits() {
  static const std::array kMethods = {
      kRouterCopy,        kRouterCopyNoise,         kRouterInterpolate,    kRouterBiasOnly,
      kRouterDormant,     kRouterScaledCopy,        kRouterPerturbNewOnly, kRouterOrthogonal,
      kRouterAdversarial, kRouterTemperatureScaled, kRouterSvdPerturb};
  return kMethods;
}

const RouterInit& router_init(std::string_view name) { return find_row(router_inits(), "router-init", name); }

}  // namespace coppice::methods
