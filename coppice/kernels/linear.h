#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// x w' + bias, differentiable. On the CPU narrow matrices in f32 are multiplied without the copies of a library's GEMM,
/// and bf16 in f32 where the processor is faster at that.
///
/// Shapes   x_TD, w_ND, bias_N or undefined; returns [T, N].
/// Threads  at::get_num_threads(); same bits for any number of them where it does not use libtorch.
at::Tensor linear(const at::Tensor& x_TD, const at::Tensor& w_ND, const at::Tensor& bias_N = {});

}  // namespace coppice::kernels
