#pragma once

// Element arithmetic of the CPU kernels, always in f32, written so that g++ vectorises the loops that use it.

#include <ATen/core/Tensor.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/dtype.h"

namespace coppice::kernels::detail {

inline float load(float value) { return value; }
inline float load(at::BFloat16 value) { return io::f32_from_bf16(value.x); }
inline void store(float& to, float value) { to = value; }
inline void store(at::BFloat16& to, float value) { to.x = io::bf16_from_f32(value); }

/// exp(x) to 1 ulp, with x clamped to [-87, 88]; NaN stays NaN. Without table, branch or libm. It must be inlined so
/// that calling loops are vectorised, which g++ does not always do by itself.
[[gnu::always_inline]] inline float exp_f32(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = std::fma(x, kLog2e, kRound);
  const float n = shifted - kRound;
  float r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  float p = 1.0f / 5040;
  p = std::fma(p, r, 1.0f / 720);
  p = std::fma(p, r, 1.0f / 120);
  p = std::fma(p, r, 1.0f / 24);
  p = std::fma(p, r, 1.0f / 6);
  p = std::fma(p, r, 0.5f);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound);
  return p * std::bit_cast<float>((exponent + 127u) << 23);
}

[[gnu::always_inline]] inline float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

/// a = silu(g) * u.
template <class T>
void swiglu_row(const T* __restrict gate, const T* __restrict up, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]);
    store(out[i], g * sigmoid_f32(g) * load(up[i]));
  }
}

/// Gradients of silu(g) * u.
template <class T>
void swiglu_backward_row(const T* __restrict gate, const T* __restrict up, const T* __restrict grad,
                         T* __restrict grad_gate, T* __restrict grad_up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]), d = load(grad[i]);
    const float s = sigmoid_f32(g);
    store(grad_gate[i], d * load(up[i]) * s * (1.0f + g * (1.0f - s)));
    store(grad_up[i], d * g * s);
  }
}

/// The sum of term(i), i < n, in 16 fixed lanes, so that the order of additions is the same for any vector width.
template <class Term>
float lane_sum(int64_t n, const Term& term) {
  constexpr int kLanes = 16;
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lane[j] += term(i + j);
  }
  for (int j = 0; i + j < n; ++j) lane[j] += term(i + j);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

/// Calls f with a value of the type of `dtype`, float or at::BFloat16.
///
/// Throws   Error{kUnsupported} for another dtype or a tensor that is not on the CPU.
template <class F>
auto with_scalar(const at::Tensor& tensor, const F& f) {
  if (!tensor.device().is_cpu()) {
    throw Error(ErrorCode::kUnsupported,
                cat("a kernel was given a tensor on ", tensor.device().str(), "; this build computes on the CPU"));
  }
  if (tensor.scalar_type() == at::kFloat) return f(float{});
  if (tensor.scalar_type() == at::kBFloat16) return f(at::BFloat16{});
  throw Error(ErrorCode::kUnsupported,
              cat("a kernel was given ", c10::toString(tensor.scalar_type()), "; wanted f32 or bf16"));
}

}  // namespace coppice::kernels::detail
