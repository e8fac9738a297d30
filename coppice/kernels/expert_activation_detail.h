#pragma once

// The activations of experts and their slopes, element by element.

#include "coppice/kernels/moe.h"
#include "coppice/kernels/vector_math_detail.h"

namespace coppice::kernels::detail {

inline constexpr float kSwigluSlope = 1.702f, kSwigluLimit = 7.0f;  // gpt_oss

/// a(g, u) with its derivatives.
struct Activated {
  float value, by_gate, by_up;
};

struct Swiglu {
  [[gnu::always_inline]] static Activated at(float g, float u) {
    const float s = sigmoid_f32(g), silu = g * s;
    return {silu * u, u * s * (1.0f + g * (1.0f - s)), silu};
  }
};

struct ClampedSwiglu {
  [[gnu::always_inline]] static Activated at(float g, float u) {
    const float held = g > kSwigluLimit ? kSwigluLimit : g;
    const float up = (u > kSwigluLimit ? kSwigluLimit : u < -kSwigluLimit ? -kSwigluLimit : u) + 1.0f;
    const float s = sigmoid_f32(kSwigluSlope * held), glu = held * s;
    const float by_gate = g > kSwigluLimit ? 0.0f : up * s * (1.0f + kSwigluSlope * held * (1.0f - s));
    const float by_up = u > kSwigluLimit || u < -kSwigluLimit ? 0.0f : glu;
    return {glu * up, by_gate, by_up};
  }
};

/// Calls f with the activation's type.
template <class F>
auto with_activation(ExpertActivation activation, const F& f) {
  return activation == ExpertActivation::kSwiglu ? f(Swiglu{}) : f(ClampedSwiglu{});
}

}  // namespace coppice::kernels::detail
