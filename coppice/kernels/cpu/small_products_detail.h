#pragma once

// Which products of f32 matrices are small, and so better computed in lanes than by a library.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "coppice/kernels/cpu/lanes_detail.h"

namespace coppice::kernels::cpu {

/// Whether a product [.., inner] x [inner, cols] is better computed by Lanes::multiply than by libtorch.
bool is_small_product(int64_t inner, int64_t cols, at::ScalarType dtype);

/// Whether products of such numbers are computed in f32 because that is faster on this processor.
bool widens(at::ScalarType dtype);

/// a b by libtorch, computed and returned in f32.
///
/// Memory   a and b in f32.
at::Tensor product_in_f32(const at::Tensor& a, const at::Tensor& b);

/// out [a.rows, b.cols] = a b in lanes or by libtorch, on the calling thread, plus `bias` [b.cols] in each row unless it is
/// null. T is float or at::BFloat16; rows of `out` are without gaps.
template <class T>
void multiply_into(T* out, const MatrixOf<T>& a, const MatrixOf<T>& b, const T* bias = nullptr);

}  // namespace coppice::kernels::cpu
