#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/embedding_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kRowsPerTask = 64;

/// The positions of ids, those of equal ids next to each other in rising order, and where each id's begin.
struct ById {
  std::vector<int64_t> position, first;

  explicit ById(const at::Tensor& ids_T) : position(static_cast<size_t>(ids_T.numel())) {
    const auto* const id = ids_T.const_data_ptr<int64_t>();
    std::iota(position.begin(), position.end(), 0);
    std::stable_sort(position.begin(), position.end(), [id](int64_t a, int64_t b) { return id[a] < id[b]; });
    for (size_t i = 0; i < position.size(); ++i) {
      if (i == 0 || id[position[i]] != id[position[i - 1]]) first.push_back(static_cast<int64_t>(i));
    }
    first.push_back(static_cast<int64_t>(position.size()));
  }
  int64_t ids() const { return static_cast<int64_t>(first.size()) - 1; }
};

}  // namespace

at::Tensor embed_backward(const at::Tensor& grad_TD, const at::Tensor& ids_T, int64_t rows, at::ScalarType dtype) {
  const int64_t dim = grad_TD.size(1);
  const auto out_VD = at::zeros({rows, dim}, grad_TD.options().dtype(dtype));
  const auto* const grad = grad_TD.const_data_ptr<float>();
  const auto* const id = ids_T.const_data_ptr<int64_t>();
  const ById by_id(ids_T);
  with_scalar(out_VD, [&]<class T>(T) {
    auto* const out = out_VD.mutable_data_ptr<T>();
    parallel_ranges(by_id.ids(), kRowsPerTask, [&](int64_t begin, int64_t end) {
      std::vector<float> sum(static_cast<size_t>(dim));
      for (int64_t i = begin; i < end; ++i) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int64_t at = by_id.first[i]; at < by_id.first[i + 1]; ++at) {
          const float* const row = grad + by_id.position[at] * dim;
          for (int64_t d = 0; d < dim; ++d) sum[d] += row[d];
        }
        T* const to = out + id[by_id.position[by_id.first[i]]] * dim;
        for (int64_t d = 0; d < dim; ++d) store(to[d], sum[d]);
      }
    });
  });
  return out_VD;
}

}  // namespace coppice::kernels::cpu
