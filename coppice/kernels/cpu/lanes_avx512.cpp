// 16 lanes in one vector of AVX-512.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/lanes_detail.h"
#include "coppice/kernels/cpu/scratch_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")

namespace coppice::kernels::cpu {
namespace {

struct Vectors {
  using Vector = __m512;
  static constexpr int64_t kLanes = 16, kPanels = 4;
  /// Whose sums are 16 or 24 of the 32 registers.
  static constexpr int64_t rows(int64_t panels) { return panels == 4 ? 6 : panels == 2 ? 12 : 16; }

  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector all(float value) { return _mm512_set1_ps(value); }
  static Vector add_product(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector larger(Vector a, Vector b) { return _mm512_max_ps(b, a); }  // a, if b is no number
  /// Lanes 0 to 7 of 16 plus lanes 8 to 15.
  static __m256 joined(const Vector (&sum)[1]) {
    return _mm256_add_ps(_mm512_castps512_ps256(sum[0]), _mm512_extractf32x8_ps(sum[0], 1));
  }
  static void store(float* to, Vector values) { _mm512_storeu_ps(to, values); }
};

}  // namespace
}  // namespace coppice::kernels::cpu

#include "coppice/kernels/cpu/lanes_attention_detail.h"
#include "coppice/kernels/cpu/lanes_norm_detail.h"

namespace coppice::kernels::cpu {

const Lanes kLanesOfAvx512{multiply, {forward, backward}, normalise, normalise_backward};

}  // namespace coppice::kernels::cpu

#pragma GCC pop_options
