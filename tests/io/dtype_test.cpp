#include "coppice/io/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/testing/errors.h"

namespace coppice::io {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// The value of sign, exponent and mantissa bits, by the definition of the formats.
double by_definition(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto mantissa = static_cast<double>(bits & ((1u << mantissa_bits) - 1));
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double sign = (bits >> (exponent_bits + mantissa_bits)) & 1u ? -1.0 : 1.0;
  const double one = std::ldexp(1.0, mantissa_bits);
  if (exponent == (1 << exponent_bits) - 1) return mantissa == 0 ? sign * kInf : std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa / one, 1 - bias);
  return sign * std::ldexp(1.0 + mantissa / one, exponent - bias);
}

struct SixteenBits {
  const char* name;
  Dtype dtype;
  int exponent_bits, mantissa_bits;
  uint16_t (*narrow)(float);
  float (*widen)(uint16_t);
  uint16_t infinity() const { return static_cast<uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits); }
};
const SixteenBits kFormats[] = {{"bf16", Dtype::kBf16, 8, 7, bf16_from_f32, f32_from_bf16},
                                {"f16", Dtype::kF16, 5, 10, f16_from_f32, f32_from_f16}};

class DtypeSixteenBits : public ::testing::TestWithParam<SixteenBits> {};
INSTANTIATE_TEST_SUITE_P(All, DtypeSixteenBits, ::testing::ValuesIn(kFormats),
                         [](const auto& test) { return test.param.name; });

TEST_P(DtypeSixteenBits, WidensEveryValueExactly) {
  const auto& f = GetParam();
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double wanted = by_definition(bits, f.exponent_bits, f.mantissa_bits);
    const float found = f.widen(static_cast<uint16_t>(bits));
    if (std::isnan(wanted)) {
      ASSERT_TRUE(std::isnan(found)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(found), wanted) << bits;
      ASSERT_EQ(std::signbit(found), std::signbit(wanted)) << bits;
    }
  }
}

TEST_P(DtypeSixteenBits, NarrowsEveryOfItsValuesToItself) {
  const auto& f = GetParam();
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    const float x = f.widen(h);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(f.widen(f.narrow(x)))) << bits;
    } else {
      ASSERT_EQ(f.narrow(x), h) << bits;
    }
  }
}

// Between every two neighbours: what lies below the middle goes down, above it up, the middle itself to the even one.
TEST_P(DtypeSixteenBits, RoundsToNearestAndTiesToEven) {
  const auto& f = GetParam();
  for (uint32_t bits = 0; bits < f.infinity(); ++bits) {
    const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const double a = f.widen(low);
    // Past the largest value the next step would be as long as the last one.
    const double b = high == f.infinity() ? 2 * a - f.widen(static_cast<uint16_t>(bits - 1)) : f.widen(high);
    const auto middle = static_cast<float>((a + b) / 2);
    if (static_cast<double>(middle) != (a + b) / 2) continue;  // f32 itself has no such value below its subnormals
    for (const float sign : {1.0f, -1.0f}) {
      const auto with_sign = [&](uint16_t h) { return static_cast<uint16_t>(sign < 0 ? h | 0x8000u : h); };
      ASSERT_EQ(f.narrow(sign * middle), with_sign(low % 2 == 0 ? low : high)) << bits;
      ASSERT_EQ(f.narrow(sign * std::nextafter(middle, 0.0f)), with_sign(low)) << bits;
      ASSERT_EQ(f.narrow(sign * std::nextafter(middle, kInf)), with_sign(high)) << bits;
    }
  }
}

TEST_P(DtypeSixteenBits, KeepsNanWhateverItsPayload) {
  const auto& f = GetParam();
  for (const uint32_t payload : {1u, 0x1fffu, 0x2000u, 0xffffu, 0x10000u, 0x3fffffu, 0x400000u, 0x7fffffu}) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const auto h = f.narrow(std::bit_cast<float>(0x7f800000u | payload | sign));
      EXPECT_TRUE(std::isnan(f.widen(h))) << payload;
      EXPECT_EQ(h >> 15, sign >> 31);
    }
  }
}

TEST_P(DtypeSixteenBits, NeighbourIsOneStepAwayAcrossZeroToo) {
  const auto& f = GetParam();
  for (uint32_t bits = 0; bits < f.infinity(); ++bits) {
    const float a = f.widen(static_cast<uint16_t>(bits)), b = f.widen(static_cast<uint16_t>(bits + 1));
    ASSERT_EQ(next_representable(f.dtype, a, 1.0f), b) << bits;
    ASSERT_EQ(next_representable(f.dtype, b, -0.5f), a) << bits;
    ASSERT_EQ(next_representable(f.dtype, -a, -1.0f), -b) << bits;
    ASSERT_EQ(next_representable(f.dtype, -b, 2.0f), -a) << bits;
  }
  const float smallest = f.widen(1);
  EXPECT_EQ(next_representable(f.dtype, 0.0f, -1.0f), -smallest);
  EXPECT_EQ(next_representable(f.dtype, -0.0f, 1.0f), smallest);
  EXPECT_EQ(next_representable(f.dtype, kInf, 1.0f), kInf);
  EXPECT_EQ(next_representable(f.dtype, smallest, 0.0f), smallest);
}

TEST_P(DtypeSixteenBits, ConvertsSpansAsItConvertsOneByOne) {
  const auto& f = GetParam();
  std::vector<float> values(1003);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = std::bit_cast<float>(static_cast<uint32_t>(i * 2654435761u + 12345u));
  }
  // One byte in, as a header of odd length leaves the data.
  std::vector<std::byte> bytes(2 * values.size() + 1);
  const auto odd = std::span(bytes).subspan(1);
  from_f32(f.dtype, values, odd);
  std::vector<float> back(values.size());
  to_f32(f.dtype, odd, back);
  for (size_t i = 0; i < values.size(); ++i) {
    const float wanted = f.widen(f.narrow(values[i]));
    ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(wanted)) << i;
  }
}

TEST(DtypeF32, PassesUnchanged) {
  const std::vector<float> values = {0.0f, -0.0f, 1e-45f, 3.5f, kInf};
  std::vector<std::byte> bytes(4 * values.size());
  from_f32(Dtype::kF32, values, bytes);
  std::vector<float> back(values.size());
  to_f32(Dtype::kF32, bytes, back);
  EXPECT_EQ(back, values);
  EXPECT_EQ(next_representable(Dtype::kF32, 1.0f, 1.0f), std::nextafter(1.0f, 2.0f));
  EXPECT_EQ(next_representable(Dtype::kF32, 0.0f, -1.0f), -std::numeric_limits<float>::denorm_min());
}

TEST(DtypeNames, ReadBackAsTheSameType) {
  int known = 0;
  for (int i = 0; i <= static_cast<int>(Dtype::kU64); ++i, ++known) {
    const auto dtype = static_cast<Dtype>(i);
    Dtype back = Dtype::kBool;
    EXPECT_TRUE(parse_dtype(dtype_name(dtype), back));
    EXPECT_EQ(back, dtype);
    EXPECT_GT(dtype_bits(dtype), 0);
  }
  EXPECT_EQ(known, 22);
  Dtype untouched = Dtype::kI8;
  EXPECT_FALSE(parse_dtype("bf16", untouched));
  EXPECT_FALSE(parse_dtype("", untouched));
  EXPECT_EQ(untouched, Dtype::kI8);
}

TEST(DtypeConversion, RefusesWhatIsNoFloat) {
  std::vector<float> out(1);
  const std::vector<std::byte> in(1);
  testing::expect_error(ErrorCode::kInternal, {"I8"}, [&] { to_f32(Dtype::kI8, in, out); });
}

}  // namespace
}  // namespace coppice::io
