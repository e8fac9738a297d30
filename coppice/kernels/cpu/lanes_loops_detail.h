#pragma once

// Products of small f32 matrices in vectors of 16 lanes. No operand is copied but one that is read across, so these are
// for matrices that stay in the caches. Include it where the target is set, after everything else, and after a struct
// Vectors: a processor's vector of kLanes numbers with load, all (one number in all lanes), add_product and store;
// kPanels, the most columns at a time in panels of 16, and rows(panels), the rows at a time.

#include "coppice/kernels/cpu/unrolled_detail.h"

namespace coppice::kernels::cpu {
namespace {

inline constexpr int64_t kLaneVectors = kNarrowLanes / Vectors::kLanes;  // that have 16 lanes

/// The 16 lanes that begin at `start`, and that f makes of themselves and the numbers from 0, 16, 32, ... on below `n`:
/// lanes[v] = f(lanes[v], first number of the vector).
template <class F>
[[gnu::always_inline]] inline void fold_lanes(int64_t n, float start, Vectors::Vector (&lanes)[kLaneVectors],
                                              const F& f) {
  unrolled<kLaneVectors>([&](auto v) __attribute__((always_inline)) { lanes[v] = Vectors::all(start); });
  for (int64_t i = 0; i < n; i += kNarrowLanes) {
    unrolled<kLaneVectors>([&](auto v)
                               __attribute__((always_inline)) { lanes[v] = f(lanes[v], i + v * Vectors::kLanes); });
  }
}

/// Numbers at data[row * row_step + k * k_step].
struct Strided {
  const float* data;
  int64_t row_step, k_step;

  Strided from(int64_t row) const { return {data + row * row_step, row_step, k_step}; }
};

/// out[c * out_step + lane] = rows[lane * row_step + c] for 16 lanes and `cols` columns.
void turn_rows(const float* rows, int64_t row_step, int64_t cols, float* out, int64_t out_step) {
  int64_t c = 0;
  for (; c + 8 <= cols; c += 8) {
    for (int64_t half = 0; half < kNarrowLanes; half += 8) {
      __m256 r[8], pairs[8];
      for (int64_t i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(rows + (half + i) * row_step + c);
      for (int64_t i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
      }
      for (int64_t i = 0; i < 8; i += 4) {  // four rows of a column in each half of a register
        r[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
      }
      for (int64_t i = 0; i < 4; ++i) {
        float* const to = out + (c + i) * out_step + half;
        _mm256_storeu_ps(to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(to + 4 * out_step, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
      }
    }
  }
  for (; c < cols; ++c) {
    for (int64_t lane = 0; lane < kNarrowLanes; ++lane) out[c * out_step + lane] = rows[lane * row_step + c];
  }
}

/// out[row * out_step + col] = (or +=) sum over k < inner of left(row, k) * right[k * right_step + col], for kRows rows
/// and kPanels * 16 columns; the sum goes by rising k.
template <int64_t kRows, int64_t kPanels, bool kAdd>
void multiply_block(Strided left, const float* right, int64_t right_step, int64_t inner, float* out, int64_t out_step) {
  constexpr int64_t kWidth = Vectors::kLanes, kVectors = kPanels * kNarrowLanes / kWidth;
  Vectors::Vector sum[kRows][kVectors], b[kVectors];
  const auto each_sum = [&](const auto& f) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      unrolled<kVectors>([&](auto v) __attribute__((always_inline)) { f(r, v, out + r * out_step + v * kWidth); });
    });
  };
  each_sum([&](auto r, auto v, const float* at)
               __attribute__((always_inline)) { sum[r][v] = kAdd ? Vectors::load(at) : Vectors::all(0.0f); });
  for (int64_t k = 0; k < inner; ++k) {
    unrolled<kVectors>(
        [&](auto v) __attribute__((always_inline)) { b[v] = Vectors::load(right + k * right_step + v * kWidth); });
    unrolled<kRows>([&](auto r) __attribute__((always_inline)) {
      const auto a = Vectors::all(left.data[r * left.row_step + k * left.k_step]);
      unrolled<kVectors>([&](auto v)
                             __attribute__((always_inline)) { sum[r][v] = Vectors::add_product(a, b[v], sum[r][v]); });
    });
  }
  each_sum([&](auto r, auto v, float* at) __attribute__((always_inline)) { Vectors::store(at, sum[r][v]); });
}

/// The same for any number of rows: kRows at a time, then fewer.
template <int64_t kRows, int64_t kPanels, bool kAdd>
void multiply_rows(Strided left, int64_t rows, const float* right, int64_t right_step, int64_t inner, float* out,
                   int64_t out_step) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    multiply_block<kRows, kPanels, kAdd>(left.from(row), right, right_step, inner, out + row * out_step, out_step);
  }
  if constexpr (kRows > 1) {
    constexpr auto kFewer = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(kRows - 1)));
    if (row == rows) return;
    multiply_rows<kFewer, kPanels, kAdd>(left.from(row), rows - row, right, right_step, inner, out + row * out_step,
                                         out_step);
  }
}

/// The same for any multiple of 16 columns: as many as Vectors::kPanels at a time, then fewer.
template <bool kAdd, int64_t kPanels = Vectors::kPanels>
void multiply_lanes(Strided left, int64_t rows, const float* right, int64_t right_step, int64_t inner, int64_t cols,
                    float* out, int64_t out_step) {
  constexpr int64_t kCols = kPanels * kNarrowLanes;
  int64_t col = 0;
  for (; col + kCols <= cols; col += kCols) {
    multiply_rows<Vectors::rows(kPanels), kPanels, kAdd>(left, rows, right + col, right_step, inner, out + col,
                                                         out_step);
  }
  if constexpr (kPanels > 1) {
    if (col == cols) return;
    multiply_lanes<kAdd, kPanels / 2>(left, rows, right + col, right_step, inner, cols - col, out + col, out_step);
  }
}

/// Lanes::multiply.
void multiply(const Matrix& a, const Matrix& b, float* out, int64_t out_step, bool add) {
  COPPICE_CHECK(a.cols == b.rows && b.cols % kNarrowLanes == 0 && (b.col_step == 1 || b.row_step == 1));
  constexpr int64_t kCols = Vectors::kPanels * kNarrowLanes;
  constexpr int64_t kInner = 4096 / kCols;  // of b at a time: 16 KB, half of a level-1 cache
  alignas(64) float packed[kInner * kCols];
  for (int64_t k = 0; k < a.cols; k += kInner) {
    const int64_t inner = std::min(kInner, a.cols - k);
    const Strided left{a.data + k * a.col_step, a.row_step, a.col_step};
    for (int64_t col = 0; col < b.cols; col += kCols) {
      const int64_t cols = std::min(kCols, b.cols - col);
      const float* right = b.data + k * b.row_step + col * b.col_step;
      int64_t right_step = b.row_step;
      if (b.col_step != 1) {
        for (int64_t c = 0; c < cols; c += kNarrowLanes) {
          turn_rows(right + c * b.col_step, b.col_step, inner, packed + c, kCols);
        }
        right = packed;
        right_step = kCols;
      }
      const auto product = add || k > 0 ? multiply_lanes<true> : multiply_lanes<false>;
      product(left, a.rows, right, right_step, inner, cols, out + col, out_step);
    }
  }
}

}  // namespace
}  // namespace coppice::kernels::cpu
