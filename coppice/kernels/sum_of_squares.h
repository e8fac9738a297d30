#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// Sum of squares of a contiguous f32 or bf16 tensor in fp64: fixed blocks of 16 lanes, added in order.
///
/// Threads  at::get_num_threads(); the bits do not depend on their number.
double sum_of_squares(const at::Tensor& values);

}  // namespace coppice::kernels
