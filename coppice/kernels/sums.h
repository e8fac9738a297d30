#pragma once

#include <ATen/core/Tensor.h>

#include <span>

namespace coppice::kernels {

/// Sum of squares of a contiguous f32 or bf16 tensor in fp64; on the CPU `lane_sum` of fixed blocks, added in order.
///
/// Shapes   any; returns a scalar f64 on the device of `values`, so that nobody need wait for it.
/// Memory   off the CPU 2^24 numbers in f64.
/// Threads  at::get_num_threads(); same bits for any number of them.
at::Tensor sum_of_squares(const at::Tensor& values);
/// The sum over several tensors, at least one, in their order; on the CPU one parallel region for all of them.
at::Tensor sum_of_squares(std::span<const at::Tensor> values);

/// Sum of a * b over each expert's elements in fp64, on the CPU by `lane_sum`.
///
/// Shapes   a, b [experts, ...] f32, contiguous and alike; returns [experts] f64 on their device.
/// Memory   off the CPU 2^24 numbers in f64, twice, or those of one expert.
/// Threads  at::get_num_threads(); same bits for any number of them.
at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::kernels
