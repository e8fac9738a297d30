#pragma once

// RMSNorm of f32 rows of whole lanes. The arithmetic, and so the bits, are those of the loops in rms_norm.cpp. Include it
// as lanes_loops_detail.h.

#include "coppice/kernels/cpu/lanes_loops_detail.h"

namespace coppice::kernels::cpu {
namespace {

/// The sum of term(first number of a vector) over `n` numbers, added in pairs of lanes as lane_sum does.
template <class Term>
[[gnu::always_inline]] inline float sum_of_lanes(int64_t n, const Term& term) {
  Vectors::Vector sum[kLaneVectors];
  fold_lanes(n, 0.0f, sum,
             [&](auto all, int64_t at) __attribute__((always_inline)) { return Vectors::add(all, term(at)); });
  const __m256 eight = Vectors::joined(sum);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

void normalise(const NormRows& rows, const float* weight, double epsilon, float* out, float* scales) {
  const int64_t n = rows.width;
  const float* x = rows.x;
  for (int64_t r = 0; r < rows.count; ++r, x += n, out += n) {
    const float squares = sum_of_lanes(n, [&](int64_t i) __attribute__((always_inline)) {
      const auto value = Vectors::load(x + i);
      return Vectors::multiply(value, value);
    });
    scales[r] = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n) + epsilon));
    const auto scale = Vectors::all(scales[r]);
    for (int64_t i = 0; i < n; i += Vectors::kLanes) {
      const auto normed = Vectors::multiply(Vectors::load(x + i), scale);
      Vectors::store(out + i, Vectors::multiply(normed, Vectors::load(weight + i)));
    }
  }
}

void normalise_backward(const NormRows& rows, const float* weight, const float* scales, const float* grad,
                        float* grad_x, float* grad_weight) {
  const int64_t n = rows.width;
  const float* x = rows.x;
  for (int64_t r = 0; r < rows.count; ++r, x += n, grad += n, grad_x += n) {
    const float dot = sum_of_lanes(n, [&](int64_t i) __attribute__((always_inline)) {
      const auto weighted = Vectors::multiply(Vectors::load(grad + i), Vectors::load(weight + i));
      return Vectors::multiply(weighted, Vectors::load(x + i));
    });
    const auto pull = Vectors::all(dot * scales[r] * scales[r] / static_cast<float>(n));
    const auto scale = Vectors::all(scales[r]);
    for (int64_t i = 0; i < n; i += Vectors::kLanes) {
      const auto d = Vectors::load(grad + i), value = Vectors::load(x + i);
      const auto weighted = Vectors::multiply(d, Vectors::load(weight + i));
      const auto change = Vectors::subtract(weighted, Vectors::multiply(value, pull));
      Vectors::store(grad_x + i, Vectors::multiply(scale, change));
      const auto of_weight = Vectors::multiply(Vectors::multiply(d, value), scale);
      Vectors::store(grad_weight + i, Vectors::add(Vectors::load(grad_weight + i), of_weight));
    }
  }
}

}  // namespace
}  // namespace coppice::kernels::cpu
