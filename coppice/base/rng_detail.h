#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace coppice::detail {

// Box-Muller without libm, so that the bits are the same on every machine. It has no branches, so that loops over it
// vectorise.

/// -ln u for normal u in (0, 1]: u = 2^e m with m in [sqrt(1/2), sqrt(2)); minimax polynomial of degree 6 for
/// (ln(1 + f) - f + f^2/2) / f^3, relative error of the logarithm 3.2e-8.
inline float minus_log(float u) {
  constexpr uint32_t kRootHalf = 0x3f3504f3;
  const uint32_t offset = std::bit_cast<uint32_t>(u) - kRootHalf;
  const auto exponent = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = std::bit_cast<float>((offset & 0x7fffff) + kRootHalf) - 1.0F;
  float p = 0.08700435608625412F;
  p = p * f + -0.14267486333847046F;
  p = p * f + 0.14914767444133759F;
  p = p * f + -0.1657758504152298F;
  p = p * f + 0.19963063299655914F;
  p = p * f + -0.2500133812427521F;
  p = p * f + 0.3333390951156616F;
  const float tail = (f * p - 0.5F) * (f * f) + exponent * 1.428606765330187e-06F;  // ln 2 in two parts:
  return -(exponent * 0.693145751953125F + (f + tail));                             // the upper times e is exact
}

struct SinCos {
  float sin, cos;
};

/// Sine and cosine of 2 pi turn / 2^32: the nearest quarter turn exactly, then minimax polynomials on [-pi/4, pi/4],
/// relative errors 3.6e-9 and 1e-10 before rounding.
inline SinCos sincos_turn(uint32_t turn) {
  const uint32_t quarter = (turn + (uint32_t{1} << 29)) >> 30;
  const auto rest = static_cast<int32_t>(turn - (quarter << 30));
  const float a = static_cast<float>(rest) * 1.4629180792671596e-09F;  // 2 pi / 2^32
  const float z = a * a;
  float s = -0.0001951729936990887F;
  s = s * z + 0.008332177996635437F;
  s = s * z + -0.16666655242443085F;
  s = s * z * a + a;
  float c = 2.4438451873720624e-05F;
  c = c * z + -0.001388736767694354F;
  c = c * z + 0.04166664555668831F;
  c = (c * z - 0.5F) * z + 1.0F;
  const bool swap = (quarter & 1) != 0;
  const uint32_t sin_sign = (quarter & 2) << 30;
  const uint32_t cos_sign = ((quarter + 1) & 2) << 30;
  const uint32_t sin_bits = std::bit_cast<uint32_t>(swap ? c : s) ^ sin_sign;
  const uint32_t cos_bits = std::bit_cast<uint32_t>(swap ? s : c) ^ cos_sign;
  return {std::bit_cast<float>(sin_bits), std::bit_cast<float>(cos_bits)};
}

struct NormalPair {
  float first, second;
};

/// Two independent normals from two random words.
inline NormalPair box_muller(uint32_t radius_bits, uint32_t angle_bits) {
  const float u = (static_cast<float>(static_cast<int32_t>(radius_bits >> 1)) + 0.5F) * 0x1p-31F;  // (0, 1]
  const float radius = std::sqrt(2.0F * minus_log(u));
  const SinCos angle = sincos_turn(angle_bits);
  return {radius * angle.cos, radius * angle.sin};
}

/// Sets out[4 i + w] from word w of block `first` + i: a normal number (two words make two, by Box-Muller) or a number
/// of U(-1, 1). Uses the widest instructions of this processor; the bits equal those of the scalar code.
void fill_normal_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                        size_t blocks, float* out);
void fill_uniform_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                         size_t blocks, float* out);

/// U(-1, 1) in steps of 2^-23, symmetric, never 0.
inline float signed_uniform(uint32_t bits) {
  return (static_cast<float>(static_cast<int32_t>(bits) >> 8) + 0.5F) * 0x1p-23F;
}

/// The instruction sets that this build has code for and this processor supports. For tests that all give the same
/// bits.
std::vector<int64_t> simd_targets();
/// From now on all fills use this instruction set; 0: the best one again. Not to be called while another thread fills.
void use_simd_target(int64_t target);

}  // namespace coppice::detail
