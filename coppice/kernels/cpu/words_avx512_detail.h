#pragma once

// Small matrix products, and data movement between them, for processors with AVX-512 (and AVX512_BF16 for bf16). Sums
// are in f32. A *word* is 32 bits along the summed dimension: one f32 or two neighbouring bf16. A *panel* is 16 lanes
// wide: [words][16]. For .cpp files only. Everything below is compiled for AVX-512; call it only where
// processor_detail.h says Path::kWords.

#include <ATen/core/Tensor.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/cpu/scratch_detail.h"

namespace coppice::kernels::cpu {

using Word = uint32_t;
using AnyWord __attribute__((may_alias)) = Word;  // the same memory as numbers elsewhere
inline constexpr int64_t kLanes = 16;
template <class T>
inline constexpr int64_t kPerWord = sizeof(Word) / sizeof(T);

/// The left matrix of a product, read word by word: (row, word) is data[row * row_step + word * word_step].
struct Words {
  const Word* data;
  int64_t row_step, word_step;

  Words row(int64_t r) const { return {data + r * row_step, row_step, word_step}; }
};

}  // namespace coppice::kernels::cpu

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

#include "coppice/kernels/cpu/unrolled_detail.h"

namespace coppice::kernels::cpu {
namespace {

using detail::kFactor2;
using detail::kFactor3;
using detail::kFactor4;
using detail::kFactor5;
using detail::kFactor6;
using detail::kFactor7;
using detail::kLargestExponent;
using detail::kLeastExponent;
using detail::kLn2High;
using detail::kLn2Low;
using detail::kLog2e;

template <class T>
__m512 dot(__m512 sum, __m512i a, __m512i b) {
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  } else {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);  // std::bit_cast would be of the baseline
  }
}

/// out [M][N * 16] = rows [0, M) of `a` times N panels that are `panel_step` words apart.
template <class T, int M, int N>
void multiply(Words a, const Word* panels, int64_t panel_step, int64_t words, float* out) {
  __m512 sum[M][N];
  __m512i lanes[N];
  const auto each_sum = [&](const auto& f) __attribute__((always_inline)) {
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      unrolled<N>([&](auto j) __attribute__((always_inline)) { f(i, j); });
    });
  };
  each_sum([&](auto i, auto j) __attribute__((always_inline)) { sum[i][j] = _mm512_setzero_ps(); });
  for (int64_t w = 0; w < words; ++w) {
    unrolled<N>([&](auto j) __attribute__((always_inline)) {
      lanes[j] = _mm512_load_si512(panels + j * panel_step + w * kLanes);
    });
    const auto* const at = reinterpret_cast<const AnyWord*>(a.data + w * a.word_step);
    unrolled<M>([&](auto i) __attribute__((always_inline)) {
      const __m512i one = _mm512_set1_epi32(static_cast<int>(at[i * a.row_step]));
      unrolled<N>([&](auto j) __attribute__((always_inline)) { sum[i][j] = dot<T>(sum[i][j], one, lanes[j]); });
    });
  }
  each_sum([&](auto i, auto j)
               __attribute__((always_inline)) { _mm512_store_ps(out + (i * N + j) * kLanes, sum[i][j]); });
}

inline constexpr int64_t kRows = 8;    ///< of the left matrix at a time ...
inline constexpr int64_t kPanels = 2;  ///< ... against so many panels

/// Eight rows against one panel or two.
template <class T>
void multiply_block(Words a, const Word* panels, int64_t panel_step, int64_t words, int64_t count, float* out) {
  if (count == kPanels) {
    multiply<T, kRows, kPanels>(a, panels, panel_step, words, out);
  } else {
    multiply<T, kRows, 1>(a, panels, panel_step, words, out);
  }
}

/// 16x16 words: out row i is in column i.
void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

/// A panel whose lanes are rows of memory: panel[w][lane] = word w of row(lane), w < words; of a null row zeros.
template <class Row>
void pack_rows(const Row& row, int64_t words, Word* panel) {
  const Word* from[kLanes];
  for (int i = 0; i < kLanes; ++i) from[i] = row(i);
  for (int64_t w = 0; w < words; w += kLanes) {
    const int64_t count = std::min(kLanes, words - w);
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    __m512i r[16];
    for (int i = 0; i < 16; ++i) {
      r[i] = from[i] == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi32(mask, from[i] + w);
    }
    transpose(r);
    for (int i = 0; i < count; ++i) _mm512_store_si512(panel + (w + i) * kLanes, r[i]);
  }
}

/// 16 bf16 of `first`, then 16 of `second`.
inline __m512i bf16_pair(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

/// 16 words of the two halves of 32 bf16: (0, 16), (1, 17), ...
inline __m512i interleaved(__m512i halves) {
  const __m512i low =
      _mm512_set_epi32(0x001f000f, 0x001e000e, 0x001d000d, 0x001c000c, 0x001b000b, 0x001a000a, 0x00190009, 0x00180008,
                       0x00170007, 0x00160006, 0x00150005, 0x00140004, 0x00130003, 0x00120002, 0x00110001, 0x00100000);
  return _mm512_permutexvar_epi16(low, halves);
}

/// The first and second bf16 of 16 words.
inline __m512 first_of(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
inline __m512 second_of(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

/// Words of two neighbours: of f32 the rows one after the other, of bf16 one row of pairs. `step` words lie between two
/// rows of words.
[[maybe_unused]] void put_words(__m512 first, __m512 second, Word* out, int64_t step, float) {
  _mm512_storeu_ps(out, first);
  _mm512_storeu_ps(out + step, second);
}
void put_words(__m512 first, __m512 second, Word* out, int64_t, at::BFloat16) {
  _mm512_storeu_si512(out, interleaved(bf16_pair(first, second)));
}

[[maybe_unused]] void put(__m512 values, float* out) { _mm512_storeu_ps(out, values); }
[[maybe_unused]] void put(__m512 values, at::BFloat16* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(values));
}
/// 16 rows of f32, `step` floats apart, with rows and lanes exchanged: out(lane) is where a lane's 16 values go.
template <class Out>
void put_turned(const float* rows, int64_t step, const Out& out) {
  __m512i r[16];
  for (int64_t i = 0; i < 16; ++i) r[i] = _mm512_load_si512(rows + i * step);
  transpose(r);
  for (int64_t i = 0; i < 16; ++i) put(_mm512_castsi512_ps(r[i]), out(i));
}
[[maybe_unused]] __m512 get(const float* from) { return _mm512_loadu_ps(from); }
[[maybe_unused]] __m512 get(const at::BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <class T>
__m512 rounded(__m512 values) {
  if constexpr (std::is_same_v<T, float>) {
    return values;
  } else {
    const auto bits = (__m256i)_mm512_cvtneps_pbh(values);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
}

__m512i wide(const at::BFloat16* from) {
  if (from == nullptr) return _mm512_setzero_si512();
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// 16 words of neighbours along the rows: of f32 `first` as it is, of bf16 (first[i], second[i]). A null row is zeros.
[[maybe_unused]] __m512i pair_words(const float* first, const float*) {
  return first == nullptr ? _mm512_setzero_si512() : _mm512_loadu_si512(first);
}
__m512i pair_words(const at::BFloat16* first, const at::BFloat16* second) {
  return _mm512_or_si512(wide(first), _mm512_slli_epi32(wide(second), 16));
}

/// out [words][cols]: words along the rows of a matrix, whose row r is row(r). `cols` is a multiple of 16; `step` lies
/// between two rows of words.
template <class T, class Row>
void pair_rows(const Row& row, int64_t rows, int64_t cols, Word* out, int64_t step) {
  for (int64_t w = 0; w < rows / kPerWord<T>; ++w) {
    const T* const first = row(w * kPerWord<T>);
    const T* const second = row(w * kPerWord<T> + kPerWord<T> - 1);
    for (int64_t c = 0; c < cols; c += kLanes) {
      const auto at = [c](const T* from) { return from == nullptr ? nullptr : from + c; };
      _mm512_storeu_si512(out + w * step + c, pair_words(at(first), at(second)));
    }
  }
}

/// exp to 1 ulp between -87 and 88, held to them; as exp_f32.
__m512 exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(kLeastExponent), _mm512_min_ps(_mm512_set1_ps(kLargestExponent),
                                                                  x));  // a NaN stays: both return their second operand
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2e)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2High), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2Low), r);
  __m512 p = _mm512_set1_ps(kFactor7);
  for (const float c : {kFactor6, kFactor5, kFactor4, kFactor3, kFactor2, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

[[maybe_unused]] __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
