// Methods that change every value independently.

#include <algorithm>
#include <array>

#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

using matrix::MatrixRows;
using matrix::RowFill;
using matrix::RowsSource;

RowFill copy(const MatrixRows& parent, const ChildKey&, const RowsSource&, const Params&) { return parent.read; }

// -- copy_noise ---------------------------------------------------------------

constexpr ParamSpec kCopyNoiseParams[] = {{.key = "lambda",
                                           .fallback = 0.01,
                                           .lo = 0.0,
                                           .hi = 10.0,
                                           .help = "std of the noise as a fraction of the matrix's std"}};

RowFill copy_noise(const MatrixRows& parent, const ChildKey& key, const RowsSource&, const Params& params) {
  const auto sigma = static_cast<float>(params.get("lambda") * matrix::mean_std(parent).std);
  return [parent, sigma, rng = key.tensor_rng(parent.role, kNoise)](int64_t first, std::span<float> out) {
    parent.read(first, out);
    const auto begin = static_cast<uint64_t>(first * parent.cols);
    std::array<float, 4096> noise;  // fits into the L1 cache
    for (size_t done = 0; done < out.size(); done += noise.size()) {
      const auto values = out.subspan(done, std::min(noise.size(), out.size() - done));
      rng.fill_normal(begin + done, noise.data(), values.size());
      for (size_t i = 0; i < values.size(); ++i) values[i] += sigma * noise[i];
    }
  };
}

// -- scaled_copy --------------------------------------------------------------

constexpr ParamSpec kScaledCopyParams[] = {
    {.key = "factor", .fallback = 0.95, .lo = -10.0, .hi = 10.0, .help = "factor of the parent's values"}};

RowFill scaled_copy(const MatrixRows& parent, const ChildKey&, const RowsSource&, const Params& params) {
  return [parent, factor = static_cast<float>(params.get("factor"))](int64_t first, std::span<float> out) {
    parent.read(first, out);
    for (float& x : out) x *= factor;
  };
}

// -- interpolate --------------------------------------------------------------

constexpr ParamSpec kInterpolateParams[] = {
    {.key = "alpha", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "weight of the next expert"}};

RowFill interpolate(const MatrixRows& parent, const ChildKey& key, const RowsSource& partner, const Params& params) {
  const auto alpha = static_cast<float>(params.get("alpha"));
  return [parent, next = partner(key.next()), alpha](int64_t first, std::span<float> out) {
    parent.read(first, out);
    std::vector<float> others(out.size());
    next.read(first, others);
    const float rest = 1.0f - alpha;
    for (size_t i = 0; i < out.size(); ++i) out[i] = rest * out[i] + alpha * others[i];
  };
}

}  // namespace

extern constinit const ExpertInit kCopy{.name = "copy",
                                        .child = copy,
                                        .apply_moment = nullptr,
                                        .params = {},
                                        .same_bytes = true,
                                        .same_function = true,
                                        .draws = false,
                                        .summary = "exact copy of the parent",
                                        .source = kExpertUpcycling};

extern constinit const ExpertInit kCopyNoise{
    .name = "copy_noise",
    .child = copy_noise,
    .apply_moment = nullptr,
    .params = kCopyNoiseParams,
    .same_bytes = false,
    .same_function = false,
    .summary = "copy plus Gaussian noise, relative to the matrix's standard deviation",
    .source = kExpertUpcycling};

extern constinit const ExpertInit kScaledCopy{.name = "scaled_copy",
                                              .child = scaled_copy,
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
    .child = interpolate,
    .apply_moment = nullptr,
    .params = kInterpolateParams,
    .same_bytes = false,
    .same_function = false,
    .draws = false,
    .needs_partner = true,
    .changes_biases = true,
    .summary = "the parent's weights and biases mixed with the next expert's",
    .source = kExpertUpcycling};

}  // namespace coppice::methods
