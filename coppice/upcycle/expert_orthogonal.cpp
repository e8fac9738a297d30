#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/upcycle/expert_decompose_detail.h"
#include "coppice/upcycle/expert_rows_detail.h"
#include "coppice/upcycle/lane_sum_detail.h"
#include "coppice/upcycle/purpose_detail.h"

namespace coppice::upcycle {
namespace {

constexpr ParamSpec kOrthogonalParams[] = {
    {.key = "lambda",
     .fallback = 0.1,
     .lo = 0.0,
     .hi = 10.0,
     .help = "std of the noise before the decomposition, in stds of the matrix"}};

void orthogonal(ExpertView child, const ChildKey& key, const PartnerSource&, const Params& params) {
  Dense noisy = finite_matrix(child, key);
  const std::span<const float> values(child.values);
  const auto sigma = static_cast<float>(params.get("lambda") * mean_std(values).std);
  std::vector<float> noise(values.size());
  key.tensor_rng(child.role, kNoise).fill_normal(0, noise.data(), noise.size());
  for (size_t i = 0; i < noise.size(); ++i) noisy.values[i] += sigma * noise[i];

  LaneSum squares;
  squares.add_each(values, [](float x) { return double{x} * double{x}; });
  const auto rank = static_cast<double>(std::min(child.rows, child.cols));
  const auto scale = static_cast<float>(std::sqrt(squares.total() / rank));
  const Dense q = orthonormal(noisy);
  std::ranges::transform(q.values, child.values.begin(), [scale](float x) { return scale * x; });
}

}  // namespace

Dense finite_matrix(const ExpertView& view, const ChildKey& key) {
  for (const float x : view.values) {
    if (std::isfinite(x)) continue;
    throw Error(ErrorCode::kNonFinite,
                cat("layer ", key.layer, ", expert ", key.parent, ", ", families::role_name(view.role),
                    ": a weight is ", x, "; a matrix with it cannot be decomposed (choose another expert-init)"));
  }
  return {view.rows, view.cols, std::vector<float>(view.values.begin(), view.values.end())};
}

Dense orthonormal(const Dense& m) {
  return m.rows >= m.cols ? orthonormal_columns(m) : transposed(orthonormal_columns(transposed(m)));
}

extern constinit const ExpertInit kOrthogonal{
    .name = "orthogonal",
    .apply = orthogonal,
    .apply_moment = nullptr,
    .params = kOrthogonalParams,
    .same_bytes = false,
    .same_function = false,
    .summary = "orthonormal rows or columns near the noisy parent's, with the parent's norm",
    .source = kExpertUpcycling};

}  // namespace coppice::upcycle
