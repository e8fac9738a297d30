#pragma once

// Products of small f32 matrices in 16 lanes (AVX2 with FMA, which every build has). No operand is packed or copied, so
// these are for matrices that stay in the caches.

#include <immintrin.h>

#include <cstdint>

namespace coppice::kernels::cpu {

inline constexpr int64_t kNarrowLanes = 16;

/// out[c * 16 + lane] = rows[lane * row_step + c] for 16 lanes and `cols` columns.
inline void turn_rows(const float* rows, int64_t row_step, int64_t cols, float* out) {
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
        float* const to = out + (c + i) * kNarrowLanes + half;
        _mm256_storeu_ps(to, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(to + 4 * kNarrowLanes, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
      }
    }
  }
  for (; c < cols; ++c) {
    for (int64_t lane = 0; lane < kNarrowLanes; ++lane) out[c * kNarrowLanes + lane] = rows[lane * row_step + c];
  }
}

/// Numbers at data[row * row_step + k * k_step].
struct Strided {
  const float* data;
  int64_t row_step, k_step;

  Strided from(int64_t row) const { return {data + row * row_step, row_step, k_step}; }
};

/// out[row * out_step + lane] = (or +=) sum over k < inner of left(row, k) * right[k * right_step + lane], for kRows rows
/// and 16 lanes; the sum goes by rising k.
template <int64_t kRows, bool kAdd>
[[gnu::always_inline]] inline void multiply_rows(Strided left, const float* right, int64_t right_step, int64_t inner,
                                                 float* out, int64_t out_step) {
  __m256 low[kRows], high[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    low[r] = kAdd ? _mm256_loadu_ps(out + r * out_step) : _mm256_setzero_ps();
    high[r] = kAdd ? _mm256_loadu_ps(out + r * out_step + 8) : _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < inner; ++k) {
    const __m256 b_low = _mm256_loadu_ps(right + k * right_step), b_high = _mm256_loadu_ps(right + k * right_step + 8);
    for (int64_t r = 0; r < kRows; ++r) {
      const __m256 a = _mm256_broadcast_ss(left.data + r * left.row_step + k * left.k_step);
      low[r] = _mm256_fmadd_ps(a, b_low, low[r]);
      high[r] = _mm256_fmadd_ps(a, b_high, high[r]);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(out + r * out_step, low[r]);
    _mm256_storeu_ps(out + r * out_step + 8, high[r]);
  }
}

/// The same for any multiple of 4 rows.
template <bool kAdd>
void multiply_lanes(Strided left, int64_t rows, const float* right, int64_t right_step, int64_t inner, float* out,
                    int64_t out_step) {
  for (int64_t row = 0; row < rows; row += 4) {
    multiply_rows<4, kAdd>(left.from(row), right, right_step, inner, out + row * out_step, out_step);
  }
}

}  // namespace coppice::kernels::cpu
