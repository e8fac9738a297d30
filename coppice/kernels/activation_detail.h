#pragma once

// The exponential of all kernels, and the activations of experts. No ATen here: nvcc compiles it too.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "coppice/io/dtype.h"

namespace coppice::kernels::detail {

// exp(x) = 2^n e^r with n = x log2(e) rounded to an integer and r = x - n ln 2, of which ln 2 has two parts; e^r is the
// polynomial with the factors 1/7!, 1/6!, ...
inline constexpr float kLeastExponent = -87.0f, kLargestExponent = 88.0f;
inline constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
inline constexpr float kFactor7 = 1.0f / 5040, kFactor6 = 1.0f / 720, kFactor5 = 1.0f / 120, kFactor4 = 1.0f / 24,
                       kFactor3 = 1.0f / 6, kFactor2 = 0.5f;

/// exp(x) to 1 ulp, x held to [-87, 88]; NaN stays NaN. No table, no branch, no libm. A loop that calls it is vectorised
/// if it is inlined, which g++ otherwise leaves be where several loops do.
[[gnu::always_inline]] COPPICE_ANYWHERE inline float exp_f32(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr uint32_t kRoundBits = 0x4b400000u;
  x = x < kLeastExponent ? kLeastExponent : x;
  x = x > kLargestExponent ? kLargestExponent : x;
  const float shifted = fmaf(x, kLog2e, kRound);
  const float n = shifted - kRound;
  float r = fmaf(n, -kLn2High, x);
  r = fmaf(n, -kLn2Low, r);
  float p = kFactor7;
  p = fmaf(p, r, kFactor6);
  p = fmaf(p, r, kFactor5);
  p = fmaf(p, r, kFactor4);
  p = fmaf(p, r, kFactor3);
  p = fmaf(p, r, kFactor2);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - kRoundBits + 127u) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

[[gnu::always_inline]] COPPICE_ANYWHERE inline float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

inline constexpr float kSwigluSlope = 1.702f, kSwigluLimit = 7.0f;  // gpt_oss

/// a(g, u) with its derivatives.
struct Activated {
  float value, by_gate, by_up;
};

struct Swiglu {
  [[gnu::always_inline]] COPPICE_ANYWHERE static Activated at(float g, float u) {
    const float s = sigmoid_f32(g), silu = g * s;
    return {silu * u, u * s * (1.0f + g * (1.0f - s)), silu};
  }
};

struct ClampedSwiglu {
  [[gnu::always_inline]] COPPICE_ANYWHERE static Activated at(float g, float u) {
    const float held = g > kSwigluLimit ? kSwigluLimit : g;
    const float up = (u > kSwigluLimit ? kSwigluLimit : u < -kSwigluLimit ? -kSwigluLimit : u) + 1.0f;
    const float s = sigmoid_f32(kSwigluSlope * held), glu = held * s;
    const float by_gate = g > kSwigluLimit ? 0.0f : up * s * (1.0f + kSwigluSlope * held * (1.0f - s));
    const float by_up = u > kSwigluLimit || u < -kSwigluLimit ? 0.0f : glu;
    return {glu * up, by_gate, by_up};
  }
};

}  // namespace coppice::kernels::detail
