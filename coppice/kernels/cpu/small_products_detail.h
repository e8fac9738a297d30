#pragma once

// Products of small f32 matrices on one thread, for sizes where a library's GEMM copies more than it computes.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "coppice/kernels/cpu/processor_detail.h"

namespace coppice::kernels::cpu {

/// A matrix in memory: its element (row, col) is data[row * row_step + col * col_step].
struct Matrix {
  const float* data;
  int64_t rows, cols, row_step, col_step;

  static Matrix of(const at::Tensor& x) {
    return {x.const_data_ptr<float>(), x.size(0), x.size(1), x.stride(0), x.stride(1)};
  }
  Matrix t() const { return {data, cols, rows, col_step, row_step}; }
};

/// Whether a product [.., inner] x [inner, cols] is better computed here than by libtorch: never with AVX-512, whose
/// libraries these loops were not timed against yet.
bool is_small_product(const Processor& processor, int64_t inner, int64_t cols, at::ScalarType dtype);

/// out [a.rows, b.cols] = or += a b. Every element is a sum by rising index, so the bits do not depend on how rows and
/// columns are divided into calls.
///
/// Shapes   b.cols a multiple of 16; one of b's steps is 1; rows of `out` are out_step apart.
void small_product(const Matrix& a, const Matrix& b, float* out, int64_t out_step, bool add = false);

/// out = a b by small_product or libtorch, on the calling thread.
void multiply_into(at::Tensor out, const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::kernels::cpu
