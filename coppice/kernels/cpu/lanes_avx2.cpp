// 16 lanes in two vectors of AVX2, which every build has.

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

namespace coppice::kernels::cpu {
namespace {

struct Vectors {
  using Vector = __m256;
  static constexpr int64_t kLanes = 8, kPanels = 1;
  static constexpr int64_t rows(int64_t) { return 6; }  // whose sums are 12 of the 16 registers

  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector all(float value) { return _mm256_set1_ps(value); }
  static Vector add_product(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector larger(Vector a, Vector b) { return _mm256_max_ps(b, a); }  // a, if b is no number
  /// Lanes 0 to 7 of 16 plus lanes 8 to 15.
  static __m256 joined(const Vector (&sum)[2]) { return _mm256_add_ps(sum[0], sum[1]); }
  static void store(float* to, Vector values) { _mm256_storeu_ps(to, values); }
};

}  // namespace
}  // namespace coppice::kernels::cpu

#include "coppice/kernels/cpu/lanes_attention_detail.h"
#include "coppice/kernels/cpu/lanes_norm_detail.h"

namespace coppice::kernels::cpu {

const Lanes kLanesOfAvx2{multiply, {forward, backward}, normalise, normalise_backward};

}  // namespace coppice::kernels::cpu
