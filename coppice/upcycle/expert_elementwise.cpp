// Methods that change every value by itself.

#include <algorithm>
#include <array>

#include "coppice/base/check.h"
#include "coppice/upcycle/expert_rows_detail.h"
#include "coppice/upcycle/lane_sum_detail.h"
#include "coppice/upcycle/purpose_detail.h"

namespace coppice::upcycle {
namespace {

void copy(ExpertView, const ChildKey&, const PartnerSource&, const Params&) {}  // `child` holds the parent's values

// -- copy_noise ---------------------------------------------------------------

constexpr ParamSpec kCopyNoiseParams[] = {{.key = "lambda",
                                           .fallback = 0.01,
                                           .lo = 0.0,
                                           .hi = 10.0,
                                           .help = "std of the noise as a fraction of the matrix's std"}};

void copy_noise(ExpertView child, const ChildKey& key, const PartnerSource&, const Params& params) {
  const auto sigma = static_cast<float>(params.get("lambda") * mean_std(std::span<const float>(child.values)).std);
  const Rng rng = key.tensor_rng(child.role, kNoise);
  std::array<float, 4096> noise;  // stays in the first-level cache
  for (size_t first = 0; first < child.values.size(); first += noise.size()) {
    const auto values = child.values.subspan(first, std::min(noise.size(), child.values.size() - first));
    rng.fill_normal(first, noise.data(), values.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] += sigma * noise[i];
  }
}

// -- scaled_copy --------------------------------------------------------------

constexpr ParamSpec kScaledCopyParams[] = {
    {.key = "factor", .fallback = 0.95, .lo = -10.0, .hi = 10.0, .help = "the parent's values times this"}};

void scaled_copy(ExpertView child, const ChildKey&, const PartnerSource&, const Params& params) {
  const auto factor = static_cast<float>(params.get("factor"));
  for (float& x : child.values) x *= factor;
}

// -- interpolate --------------------------------------------------------------

constexpr ParamSpec kInterpolateParams[] = {
    {.key = "alpha", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "share of the next expert"}};

void interpolate(ExpertView child, const ChildKey& key, const PartnerSource& partner, const Params& params) {
  const std::vector<float> next = partner(key.next());
  COPPICE_CHECK(next.size() == child.values.size());
  const auto alpha = static_cast<float>(params.get("alpha"));
  const float rest = 1.0f - alpha;
  for (size_t i = 0; i < next.size(); ++i) child.values[i] = rest * child.values[i] + alpha * next[i];
}

}  // namespace

extern constinit const ExpertInit kCopy{.name = "copy",
                                        .apply = copy,
                                        .apply_moment = nullptr,
                                        .params = {},
                                        .same_bytes = true,
                                        .same_function = true,
                                        .draws = false,
                                        .summary = "exact clone of the parent",
                                        .source = kExpertUpcycling};

extern constinit const ExpertInit kCopyNoise{.name = "copy_noise",
                                             .apply = copy_noise,
                                             .apply_moment = nullptr,
                                             .params = kCopyNoiseParams,
                                             .same_bytes = false,
                                             .same_function = false,
                                             .summary = "clone plus Gaussian noise scaled to the matrix",
                                             .source = kExpertUpcycling};

extern constinit const ExpertInit kScaledCopy{.name = "scaled_copy",
                                              .apply = scaled_copy,
                                              .apply_moment = nullptr,
                                              .params = kScaledCopyParams,
                                              .same_bytes = false,
                                              .same_function = false,
                                              .draws = false,
                                              .changes_biases = true,
                                              .summary = "the parent's weights and biases times a factor",
                                              .source = kExpertUpcycling};

extern constinit const ExpertInit kInterpolate{
    .name = "interpolate",
    .apply = interpolate,
    .apply_moment = nullptr,
    .params = kInterpolateParams,
    .same_bytes = false,
    .same_function = false,
    .draws = false,
    .needs_partner = true,
    .changes_biases = true,
    .summary = "the parent's weights and biases mixed with the next expert's",
    .source = kExpertUpcycling};

}  // namespace coppice::upcycle
