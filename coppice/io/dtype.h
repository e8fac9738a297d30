#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

/// Before functions that code on a GPU calls too.
#ifdef __CUDACC__
#define COPPICE_ANYWHERE __host__ __device__
#else
#define COPPICE_ANYWHERE
#endif

namespace coppice::io {

/// Element types of the safetensors format. All are carried; only F32, BF16 and F16 (and integers where noted) are
/// computed on.
enum class Dtype {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

std::string_view dtype_name(Dtype dtype);             ///< as in the header: "BF16"
bool parse_dtype(std::string_view name, Dtype& out);  ///< false if unknown
int dtype_bits(Dtype dtype);                          ///< F4 has 4, F6 6
size_t dtype_bytes(Dtype dtype);                      ///< of one element; 0 where that is less than a byte
bool is_float(Dtype dtype);                           ///< F32, BF16 or F16: what `to_f32` takes

/// bf16 bits of `x`, rounded to nearest even by integer arithmetic (the same bits on every processor); NaN stays NaN.
COPPICE_ANYWHERE inline uint16_t bf16_from_f32(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
COPPICE_ANYWHERE inline float f32_from_bf16(uint16_t b) {
  const uint32_t u = static_cast<uint32_t>(b) << 16;
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}
uint16_t f16_from_f32(float x);  ///< nearest even, subnormals and infinity included
float f32_from_f16(uint16_t h);

/// Widens F32, BF16 or F16 elements; exact. in.size() == out.size() * element bytes.
void to_f32(Dtype from, std::span<const std::byte> in, std::span<float> out);
/// Rounds once to nearest even.
void from_f32(Dtype to, std::span<const float> in, std::span<std::byte> out);
/// The next representable value of `dtype` from `value` (representable) towards `direction` (> 0 up, < 0 down).
float next_representable(Dtype dtype, float value, float direction);

}  // namespace coppice::io
