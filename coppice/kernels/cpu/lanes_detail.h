#pragma once

// Loops over small f32 matrices in vectors of 16 lanes, for sizes where a library's GEMM copies more than it computes. They
// are compiled twice: lanes_avx2.cpp for every processor (16 lanes are two vectors), lanes_avx512.cpp for those with
// AVX-512. Both compute the same bits.

#include <cstdint>

#include "coppice/kernels/attention_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"

namespace coppice::kernels::cpu {

inline constexpr int64_t kNarrowLanes = 16;

/// A matrix in memory: its element (row, col) is data[row * row_step + col * col_step].
template <class T>
struct MatrixOf {
  const T* data;
  int64_t rows, cols, row_step, col_step;

  static MatrixOf of(const at::Tensor& x) {
    return {x.const_data_ptr<T>(), x.size(0), x.size(1), x.stride(0), x.stride(1)};
  }
  /// Row after row.
  static MatrixOf of(const T* data, int64_t rows, int64_t cols) { return {data, rows, cols, cols, 1}; }
  /// Matrix `i` of a contiguous tensor of matrices.
  static MatrixOf of(const at::Tensor& x, int64_t i) {
    return of(x.const_data_ptr<T>() + i * x.size(1) * x.size(2), x.size(1), x.size(2));
  }

  MatrixOf t() const { return {data, cols, rows, col_step, row_step}; }
  MatrixOf rows_from(int64_t first, int64_t count) const {
    return {data + first * row_step, count, cols, row_step, col_step};
  }
  MatrixOf cols_from(int64_t first, int64_t count) const {
    return {data + first * col_step, rows, count, row_step, col_step};
  }
};
using Matrix = MatrixOf<float>;

/// `count` f32 rows of `width` numbers, a multiple of 16, without gaps.
struct NormRows {
  const float* x;
  int64_t count, width;
};

struct Lanes {
  /// out [a.rows, b.cols] = or += a b, on the calling thread. Every element is a sum by rising index, so the bits do not
  /// depend on how rows and columns are divided into calls.
  ///
  /// Shapes   b.cols a multiple of 16; one of b's steps is 1; rows of `out` are out_step apart.
  void (*multiply)(const Matrix& a, const Matrix& b, float* out, int64_t out_step, bool add);
  /// Heads of a multiple of 16 dimensions, without windows and sinks.
  detail::AttentionVariant attention;
  /// RMSNorm of rows, on the calling thread; `scales` gets 1 / sqrt(mean(x^2) + epsilon) of each row.
  void (*normalise)(const NormRows& rows, const float* weight, double epsilon, float* out, float* scales);
  /// Its gradients; adds to `grad_weight`.
  void (*normalise_backward)(const NormRows& rows, const float* weight, const float* scales, const float* grad,
                             float* grad_x, float* grad_weight);
};
extern const Lanes kLanesOfAvx2, kLanesOfAvx512;

/// Those of a processor.
inline const Lanes& lanes_of(const Processor& processor) { return processor.avx512 ? kLanesOfAvx512 : kLanesOfAvx2; }

}  // namespace coppice::kernels::cpu
