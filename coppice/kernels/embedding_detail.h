#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

// The gradient of a table of V rows in `dtype`, from that of its rows: ids_T int64, grad_TD f32, contiguous.
namespace cpu {
at::Tensor embed_backward(const at::Tensor& grad_TD, const at::Tensor& ids_T, int64_t rows, at::ScalarType dtype);
}  // namespace cpu
namespace aten {
at::Tensor embed_backward(const at::Tensor& grad_TD, const at::Tensor& ids_T, int64_t rows, at::ScalarType dtype);
}  // namespace aten

}  // namespace coppice::kernels
