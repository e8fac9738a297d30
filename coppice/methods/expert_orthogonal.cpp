#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "coppice/base/lane_sum.h"
#include "coppice/matrix/mean_std.h"
#include "coppice/methods/expert_decompose_detail.h"
#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

using matrix::Dense;

constexpr ParamSpec kOrthogonalParams[] = {
    {.key = "lambda",
     .fallback = 0.1,
     .lo = 0.0,
     .hi = 10.0,
     .help = "std of the noise before the decomposition, relative to the matrix's std"}};

matrix::RowFill orthogonal(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource&,
                           const Params& params) {
  Dense noisy = whole(parent);
  const std::span<const float> values(noisy.values);
  const auto sigma = static_cast<float>(params.get("lambda") * matrix::mean_std(values).std);
  const auto rank = static_cast<double>(std::min(parent.rows, parent.cols));
  const auto scale = static_cast<float>(std::sqrt(dot(values, values) / rank));

  std::vector<float> noise(values.size());
  key.tensor_rng(parent.role, kNoise).fill_normal(0, noise.data(), noise.size());
  for (size_t i = 0; i < noise.size(); ++i) noisy.values[i] += sigma * noise[i];
  Dense q = matrix::orthonormal(noisy);
  for (float& x : q.values) x *= scale;
  return rows_of(std::move(q));
}

}  // namespace

Dense whole(const matrix::MatrixRows& matrix) { return {matrix.rows, matrix.cols, matrix.all()}; }

matrix::RowFill rows_of(Dense m) {
  return [m = std::make_shared<const Dense>(std::move(m))](int64_t first, std::span<float> out) {
    std::ranges::copy(std::span(m->values).subspan(static_cast<size_t>(first * m->cols), out.size()), out.begin());
  };
}

extern constinit const ExpertInit kOrthogonal{
    .name = "orthogonal",
    .child = orthogonal,
    .apply_moment = nullptr,
    .params = kOrthogonalParams,
    .same_bytes = false,
    .same_function = false,
    .holds_matrix = true,
    .summary = "orthonormal rows or columns closest to the parent's plus noise, scaled to the parent's norm",
    .source = kExpertUpcycling};

}  // namespace coppice::methods
