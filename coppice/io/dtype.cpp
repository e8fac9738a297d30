#include "coppice/io/dtype.h"

#include <cstring>

#include "coppice/base/check.h"

namespace coppice::io {
namespace {

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  int bits;
};

// Source: the safetensors format, `Dtype` of its reference implementation. In the order of the enum.
constexpr DtypeRow kDtypes[] = {
    {Dtype::kBool, "BOOL", 8},
    {Dtype::kF4, "F4", 4},
    {Dtype::kF6E2M3, "F6_E2M3", 6},
    {Dtype::kF6E3M2, "F6_E3M2", 6},
    {Dtype::kU8, "U8", 8},
    {Dtype::kI8, "I8", 8},
    {Dtype::kF8E5M2, "F8_E5M2", 8},
    {Dtype::kF8E4M3, "F8_E4M3", 8},
    {Dtype::kF8E8M0, "F8_E8M0", 8},
    {Dtype::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    {Dtype::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
    {Dtype::kI16, "I16", 16},
    {Dtype::kU16, "U16", 16},
    {Dtype::kF16, "F16", 16},
    {Dtype::kBf16, "BF16", 16},
    {Dtype::kI32, "I32", 32},
    {Dtype::kU32, "U32", 32},
    {Dtype::kF32, "F32", 32},
    {Dtype::kC64, "C64", 64},
    {Dtype::kF64, "F64", 64},
    {Dtype::kI64, "I64", 64},
    {Dtype::kU64, "U64", 64},
};

const DtypeRow& row(Dtype dtype) {
  const auto i = static_cast<size_t>(dtype);
  COPPICE_CHECK(i < std::size(kDtypes) && kDtypes[i].dtype == dtype);
  return kDtypes[i];
}

// Without branches, so that the loops below become SIMD code.
inline uint16_t f16_bits(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  const uint32_t normal =
      (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;  // may carry into infinity, which is right
  // Below 2^-14: the mantissa with its leading one, in units of 2^-24. A shift of 25 or more leaves nothing.
  const uint32_t exponent = a >> 23;
  const uint32_t shift = exponent < 101u ? 25u : 126u - (exponent > 112u ? 112u : exponent);
  const uint32_t mantissa = (a & 0x7fffffu) | 0x800000u;
  const uint32_t subnormal = (mantissa + (1u << (shift - 1)) - 1u + ((mantissa >> shift) & 1u)) >> shift;
  const uint32_t nan = 0x7e00u | ((a >> 13) & 0x3ffu);
  uint32_t out = a < 0x38800000u ? subnormal : normal;
  out = a >= 0x47800000u ? 0x7c00u : out;
  out = a > 0x7f800000u ? nan : out;
  return static_cast<uint16_t>(out | sign);
}

inline float f16_value(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t a = h & 0x7fffu;
  const uint32_t normal = (a << 13) + (112u << 23);
  const uint32_t special = (a << 13) | 0x7f800000u;
  const auto subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(a)) * 0x1p-24f);  // exact
  uint32_t out = a < 0x400u ? subnormal : normal;
  out = a >= 0x7c00u ? special : out;
  return std::bit_cast<float>(out | sign);
}

// The elements may lie at any address: a header's length need not be a multiple of their size.
inline uint16_t load16(const std::byte* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store16(std::byte* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }

// The neighbour of a sign-and-magnitude number whose magnitude bits are `infinity` at most; both zeros are one number.
uint32_t step(uint32_t bits, uint32_t sign_bit, uint32_t infinity, bool up) {
  const auto magnitude = static_cast<int64_t>(bits & (sign_bit - 1));
  const int64_t key = (bits & sign_bit) ? -magnitude : magnitude;
  const int64_t limit = infinity;
  const int64_t next = up ? std::min(key + 1, limit) : std::max(key - 1, -limit);
  return next < 0 ? static_cast<uint32_t>(-next) | sign_bit : static_cast<uint32_t>(next);
}

}  // namespace

std::string_view dtype_name(Dtype dtype) { return row(dtype).name; }

bool parse_dtype(std::string_view name, Dtype& out) {
  for (const auto& r : kDtypes) {
    if (r.name == name) {
      out = r.dtype;
      return true;
    }
  }
  return false;
}

int dtype_bits(Dtype dtype) { return row(dtype).bits; }
size_t dtype_bytes(Dtype dtype) { return static_cast<size_t>(row(dtype).bits) / 8; }

bool is_float(Dtype dtype) { return dtype == Dtype::kF32 || dtype == Dtype::kBf16 || dtype == Dtype::kF16; }

uint16_t f16_from_f32(float x) { return f16_bits(x); }
float f32_from_f16(uint16_t h) { return f16_value(h); }

void to_f32(Dtype from, std::span<const std::byte> in, std::span<float> out) {
  COPPICE_CHECK(is_float(from), dtype_name(from));
  COPPICE_CHECK(in.size() == out.size() * dtype_bytes(from), in.size(), " bytes for ", out.size(), " elements");
  const std::byte* p = in.data();
  float* q = out.data();
  const size_t n = out.size();
  if (n == 0) return;
  switch (from) {
    case Dtype::kBf16:
      for (size_t i = 0; i < n; ++i) q[i] = f32_from_bf16(load16(p + 2 * i));
      break;
    case Dtype::kF16:
      for (size_t i = 0; i < n; ++i) q[i] = f16_value(load16(p + 2 * i));
      break;
    default: std::memcpy(q, p, in.size());
  }
}

void from_f32(Dtype to, std::span<const float> in, std::span<std::byte> out) {
  COPPICE_CHECK(is_float(to), dtype_name(to));
  COPPICE_CHECK(out.size() == in.size() * dtype_bytes(to), out.size(), " bytes for ", in.size(), " elements");
  const float* p = in.data();
  std::byte* q = out.data();
  const size_t n = in.size();
  if (n == 0) return;
  switch (to) {
    case Dtype::kBf16:
      for (size_t i = 0; i < n; ++i) store16(q + 2 * i, bf16_from_f32(p[i]));
      break;
    case Dtype::kF16:
      for (size_t i = 0; i < n; ++i) store16(q + 2 * i, f16_bits(p[i]));
      break;
    default: std::memcpy(q, p, out.size());
  }
}

float next_representable(Dtype dtype, float value, float direction) {
  COPPICE_CHECK(is_float(dtype), dtype_name(dtype));
  const auto bits = std::bit_cast<uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  if (is_nan || !(direction != 0.0f)) return value;
  const bool up = direction > 0.0f;
  switch (dtype) {
    case Dtype::kBf16: return f32_from_bf16(static_cast<uint16_t>(step(bf16_from_f32(value), 0x8000u, 0x7f80u, up)));
    case Dtype::kF16: return f16_value(static_cast<uint16_t>(step(f16_bits(value), 0x8000u, 0x7c00u, up)));
    default: return std::bit_cast<float>(step(bits, 0x80000000u, 0x7f800000u, up));
  }
}

}  // namespace coppice::io
