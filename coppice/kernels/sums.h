#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// Sum of squares of a contiguous f32 or bf16 tensor in fp64: `lane_sum` of fixed blocks, added in order.
///
/// Shapes   any; returns a scalar f64 on the device of `values`, so that nobody need wait for it.
/// Threads  at::get_num_threads(); same bits for any number of them.
at::Tensor sum_of_squares(const at::Tensor& values);

/// Sum of a * b over each expert's elements in fp64, by `lane_sum`.
///
/// Shapes   a, b [experts, ...] f32, contiguous and alike; returns [experts] f64 on their device.
/// Threads  at::get_num_threads(); same bits for any number of them.
at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::kernels
