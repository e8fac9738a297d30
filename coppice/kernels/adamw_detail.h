#pragma once

#include <cstdint>

#include "coppice/kernels/adamw.h"

namespace coppice::kernels {
namespace detail {

// Stochastic rounding of moments in bf16: 32 random bits for each element and step, the finaliser of MurmurHash3 over
// (element * kElementFactor) ^ (step * kStepFactor), in 32 bits. The first moment uses the low half, the second the
// high half.
constexpr uint32_t kElementFactor = 0x9e3779b9u, kStepFactor = 0x632be5abu;
constexpr uint32_t kFirstMix = 0x85ebca6bu, kSecondMix = 0xc2b2ae35u;

}  // namespace detail

// adamw_step with arguments that are checked; `value` of a part is undefined if it is master itself.
namespace cpu {
void adamw_step(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& settings);
}  // namespace cpu

namespace aten {
/// By libtorch's fused AdamW, on any device that has one.
///
/// Memory   for 64 million elements at a time: their gradients once in f32, and for bf16 moments an f32 copy; for these
///          also 40 bytes per element of a piece of 4 million.
void adamw_step(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& settings);
}  // namespace aten

}  // namespace coppice::kernels
