#pragma once

// The variants of the sums; tensors are contiguous.

#include <ATen/core/Tensor.h>

#include <span>

namespace coppice::kernels {

namespace cpu {
at::Tensor sum_of_squares(std::span<const at::Tensor> values);
at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b);
}  // namespace cpu

// Memory of these: 2^24 numbers in f64.
namespace aten {
at::Tensor sum_of_squares(std::span<const at::Tensor> values);
at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b);
}  // namespace aten

}  // namespace coppice::kernels
