#pragma once

// Element arithmetic of the CPU kernels, always in f32, written so that g++ vectorises the loops that use it.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/dtype.h"
#include "coppice/kernels/activation_detail.h"

namespace coppice::kernels::cpu {

using detail::sigmoid_f32;

/// Before a function whose loops gain from vectors of AVX-512: it is compiled for them too, and the program takes what the
/// processor has. The bits are the same, because no product is fused with a sum unless the code says fmaf.
#define COPPICE_FOR_AVX512_TOO [[gnu::target_clones("arch=x86-64-v4", "default")]]

inline float load(float value) { return value; }
inline float load(at::BFloat16 value) { return io::f32_from_bf16(value.x); }
inline void store(float& to, float value) { to = value; }
inline void store(at::BFloat16& to, float value) { to.x = io::bf16_from_f32(value); }

/// a = silu(g) * u.
template <class T>
COPPICE_FOR_AVX512_TOO void swiglu_row(const T* __restrict gate, const T* __restrict up, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]);
    store(out[i], g * sigmoid_f32(g) * load(up[i]));
  }
}

/// Gradients of silu(g) * u.
template <class T>
COPPICE_FOR_AVX512_TOO void swiglu_backward_row(const T* __restrict gate, const T* __restrict up,
                                                const T* __restrict grad, T* __restrict grad_gate,
                                                T* __restrict grad_up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]), d = load(grad[i]);
    const float s = sigmoid_f32(g);
    store(grad_gate[i], d * load(up[i]) * s * (1.0f + g * (1.0f - s)));
    store(grad_up[i], d * g * s);
  }
}

/// Calls f with a value of the type of `dtype`, float or at::BFloat16.
///
/// Throws   Error{kUnsupported} for another dtype.
template <class F>
auto with_scalar(const at::Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == at::kFloat) return f(float{});
  if (tensor.scalar_type() == at::kBFloat16) return f(at::BFloat16{});
  throw Error(ErrorCode::kUnsupported,
              cat("a kernel was given ", c10::toString(tensor.scalar_type()), "; wanted f32 or bf16"));
}

}  // namespace coppice::kernels::cpu
