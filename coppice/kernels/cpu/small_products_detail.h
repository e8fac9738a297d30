#pragma once

// Which products of f32 matrices are small, and so better computed in lanes than by a library.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "coppice/kernels/cpu/lanes_detail.h"

namespace coppice::kernels::cpu {

/// Whether a product [.., inner] x [inner, cols] is better computed by Lanes::multiply than by libtorch.
bool is_small_product(int64_t inner, int64_t cols, at::ScalarType dtype);

/// out = a b in lanes or by libtorch, on the calling thread.
void multiply_into(at::Tensor out, const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::kernels::cpu
