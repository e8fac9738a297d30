#include <ATen/ops/embedding_dense_backward.h>

#include "coppice/kernels/embedding_detail.h"

namespace coppice::kernels::aten {

// libtorch's own gradient has a fixed order on a GPU, which index_add has not.
at::Tensor embed_backward(const at::Tensor& grad_TD, const at::Tensor& ids_T, int64_t rows, at::ScalarType dtype) {
  return at::embedding_dense_backward(grad_TD, ids_T, rows, /*padding_idx=*/-1, /*scale_grad_by_freq=*/false).to(dtype);
}

}  // namespace coppice::kernels::aten
