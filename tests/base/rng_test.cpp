#include "coppice/base/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "coppice/base/rng_detail.h"
#include "coppice/base/sha256.h"
#include "tests/testing/errors.h"

namespace coppice {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers that Random123 publishes (kat_vectors, philox4x32 with 10 rounds).
TEST(SplitMix64, GivesThePublishedSequence) {  // of the seed 1234567: rosettacode.org
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  EXPECT_EQ(splitmix64(1234567), 6457827717110365317u);
  EXPECT_EQ(splitmix64(1234567 + kStep), 3203168211198807973u);
  EXPECT_EQ(splitmix64(1234567 + 2 * kStep), 9817491932198370423u);
}

TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RngKeys, ArePackedAsTheHeaderSays) {
  const RngKey key{.seed = 0x0123456789abcdef,
                   .layer = 0x1234,
                   .role = 0x56,
                   .parent = 0xabcdef,
                   .copy = 0xdeadbeef,
                   .purpose = 0x78};
  const uint64_t element = (uint64_t{0x2a} << 34) + 5;  // block 0x2a00000001, word 1
  EXPECT_EQ(Rng(key).bits(element), philox4x32({1, 0x5612342a, 0x78abcdef, 0xdeadbeef}, {0x89abcdef, 0x01234567})[1]);
}

// No two keys share a stream: the fields at the ends of their ranges, in all combinations.
TEST(RngKeys, NeverCollide) {
  std::set<uint64_t> seen;
  size_t keys = 0;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}})
    for (const uint32_t layer : {0U, 1U, 0xffU, 0xffffU})
      for (const uint32_t role : {0U, 1U, 0xffU})
        for (const uint32_t parent : {0U, 1U, 0xffffffU})
          for (const uint32_t copy : {0U, 1U, 0xffffffffU})
            for (const uint32_t purpose : {0U, 1U, 0xffU}) {
              const Rng rng({seed, layer, role, parent, copy, purpose});
              for (const uint64_t element : {uint64_t{0}, (uint64_t{1} << 40) - 1}) {
                seen.insert(rng.bits64(element));
                seen.insert(uint64_t{rng.bits(element)} << 32 | rng.bits(element ^ 1));
                keys += 2;
              }
            }
  EXPECT_EQ(seen.size(), keys);
}

TEST(RngKeys, OutOfRangeAreOurBug) {
  for (const RngKey& key :
       {RngKey{.layer = 1 << 16}, RngKey{.role = 1 << 8}, RngKey{.parent = 1 << 24}, RngKey{.purpose = 1 << 8}}) {
    testing::expect_error(ErrorCode::kInternal, {"does not hold"}, [&] { (void)Rng(key); });
  }
  const Rng rng({});
  float out = 0;
  for (const uint64_t element : {uint64_t{1} << 40, ~uint64_t{0}}) {
    testing::expect_error(ErrorCode::kInternal, {"element"}, [&] { (void)rng.bits(element); });
    testing::expect_error(ErrorCode::kInternal, {"element"}, [&] { (void)rng.bits64(element); });
    testing::expect_error(ErrorCode::kInternal, {"element"}, [&] { (void)rng.normal(element); });
    testing::expect_error(ErrorCode::kInternal, {"element"}, [&] { rng.fill_normal(element, &out, 1); });
  }
}

TEST(RngNormal, IsTheSameOneByOneAndManyAtATime) {
  const Rng rng({.seed = 3, .layer = 7});
  for (const uint64_t first :
       {uint64_t{0}, uint64_t{1}, uint64_t{6}, (uint64_t{1} << 34) - 70, (uint64_t{1} << 40) - 300}) {
    for (const size_t count : {0, 1, 2, 3, 5, 63, 64, 128, 131, 300}) {
      std::vector<float> many(count + 1, -99.0F);
      rng.fill_normal(first, many.data(), count);
      EXPECT_EQ(many[count], -99.0F) << "wrote past the end";
      for (size_t i = 0; i < count; ++i) EXPECT_EQ(many[i], rng.normal(first + i)) << first << " + " << i;
    }
  }
}

// Pins the bits: any compiler, processor or preset must give these.
TEST(RngNormal, HasTheseBits) {
  std::vector<float> normals(100003);
  Rng({.seed = 1, .layer = 2, .role = 3, .parent = 4, .copy = 5, .purpose = 6})
      .fill_normal(0, normals.data(), normals.size());
  Sha256 digest;
  digest.add(std::as_bytes(std::span(normals)));
  EXPECT_EQ(digest.hex(), "48b4976841f29105c0a129155b1348fa54159202e6fdfbd2364ebd0daa7bad6c");
}

// The widest instructions of a machine must not show in a model grown on it.
TEST(RngFill, GivesTheSameBitsWithEveryInstructionSet) {
  const Rng rng({.seed = 5, .layer = 3, .role = 2, .parent = 9, .copy = 77, .purpose = 4});
  const auto targets = detail::simd_targets();
  ASSERT_GE(targets.size(), 2u);
  for (const uint64_t first : {uint64_t{0}, uint64_t{3}, (uint64_t{1} << 34) - 90}) {
    for (const size_t count : {1u, 7u, 64u, 251u, 4096u}) {
      std::vector<float> normals(count), uniforms(count);
      for (const int64_t target : targets) {
        detail::use_simd_target(target);
        rng.fill_normal(first, normals.data(), count);
        rng.fill_signed_uniform(first, uniforms.data(), count);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(normals[i], rng.normal(first + i)) << target << ": " << first << " + " << i;
          ASSERT_EQ(uniforms[i], rng.signed_uniform(first + i)) << target << ": " << first << " + " << i;
        }
      }
    }
  }
  detail::use_simd_target(0);
}

TEST(RngSignedUniform, IsUniformAndSymmetricWithoutItsEnds) {
  constexpr size_t kCount = 1 << 20;
  std::vector<float> values(kCount);
  Rng({.seed = 21}).fill_signed_uniform(0, values.data(), kCount);
  double sum = 0, squares = 0;
  std::vector<int> counts(16);
  for (const float x : values) {
    ASSERT_LT(std::fabs(x), 1.0F);
    ASSERT_NE(x, 0.0F);
    sum += x;
    squares += double{x} * x;
    ++counts.at(static_cast<size_t>((x + 1) * 8));
  }
  EXPECT_NEAR(sum / kCount, 0, 4 * std::sqrt(1.0 / 3 / kCount));
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 4 * std::sqrt(4.0 / 45 / kCount));
  double chi_squared = 0;
  for (const int count : counts) chi_squared += (count - kCount / 16.0) * (count - kCount / 16.0) / (kCount / 16.0);
  EXPECT_LT(chi_squared, 37.7);  // 15 degrees of freedom: exceeded once in a thousand
  EXPECT_EQ(detail::signed_uniform(0x7fffffff), -detail::signed_uniform(0x80000000));
}

TEST(RngNormal, HasTheMomentsOfAStandardNormal) {
  std::vector<float> normals(1 << 22);
  Rng({.seed = 42}).fill_normal(0, normals.data(), normals.size());
  double moments[5] = {};
  double neighbours = 0;
  for (size_t i = 0; i < normals.size(); ++i) {
    double power = 1;
    for (double& moment : moments) {
      moment += power;
      power *= normals[i];
    }
    neighbours += static_cast<double>(normals[i]) * normals[i ^ 1];  // the two of one draw
  }
  const auto n = static_cast<double>(normals.size());
  const double error = 1 / std::sqrt(n);  // standard errors: 1, sqrt(2), sqrt(15), sqrt(96) times this
  EXPECT_NEAR(moments[1] / n, 0, 4 * error);
  EXPECT_NEAR(moments[2] / n, 1, 4 * error * std::sqrt(2));
  EXPECT_NEAR(moments[3] / n, 0, 4 * error * std::sqrt(15));
  EXPECT_NEAR(moments[4] / n, 3, 4 * error * std::sqrt(96));
  EXPECT_NEAR(neighbours / n, 0, 4 * error);
}

// Kolmogorov-Smirnov against the normal distribution; 1.95 / sqrt(n) is passed by chance in one of a thousand.
TEST(RngNormal, FollowsTheNormalDistribution) {
  std::vector<float> normals(1 << 20);
  Rng({.seed = 7, .purpose = 9}).fill_normal(0, normals.data(), normals.size());
  std::sort(normals.begin(), normals.end());
  const auto n = static_cast<double>(normals.size());
  double distance = 0;
  for (size_t i = 0; i < normals.size(); ++i) {
    const double share = 0.5 * std::erfc(-static_cast<double>(normals[i]) / std::sqrt(2.0));
    distance = std::max(
        {distance, std::fabs(share - static_cast<double>(i) / n), std::fabs(share - static_cast<double>(i + 1) / n)});
  }
  EXPECT_LT(distance, 1.95 / std::sqrt(n));
  EXPECT_GT(normals.back(), 4.5F);  // the tails are there
  EXPECT_LT(normals.front(), -4.5F);
}

// Units in the last place of float: 2^-24 relative. Rounding in a few additions and the square costs about two of them.
TEST(MinusLog, IsWithinThreeUlpOfLibm) {
  for (uint32_t bits = 0x2f800000; bits <= 0x3f800000; bits += 997) {  // 2^-32 to 1
    const float u = std::bit_cast<float>(bits);
    const double exact = -std::log(static_cast<double>(u));
    EXPECT_NEAR(detail::minus_log(u), exact, 3 * 0x1p-24 * exact) << u;
  }
  EXPECT_EQ(detail::minus_log(1.0F), 0.0F);
  for (uint32_t bits = 0x3f800000 - 1000; bits < 0x3f800000; ++bits) {  // next to 1, where the logarithm vanishes
    const float u = std::bit_cast<float>(bits);
    const double exact = -std::log(static_cast<double>(u));
    EXPECT_NEAR(detail::minus_log(u), exact, 3 * 0x1p-24 * exact) << u;
  }
}

TEST(SinCosTurn, IsWithinOneUlpOfOneOfLibm) {
  constexpr double kTurn = 2 * 3.14159265358979323846 / 4294967296.0;
  for (uint64_t turn = 0; turn < uint64_t{1} << 32; turn += 4099) {
    const auto got = detail::sincos_turn(static_cast<uint32_t>(turn));
    const double angle = static_cast<double>(turn) * kTurn;
    EXPECT_NEAR(got.sin, std::sin(angle), 0x1p-23) << turn;
    EXPECT_NEAR(got.cos, std::cos(angle), 0x1p-23) << turn;
  }
  EXPECT_EQ(detail::sincos_turn(0).sin, 0.0F);
  EXPECT_EQ(detail::sincos_turn(0).cos, 1.0F);
  EXPECT_EQ(detail::sincos_turn(1U << 30).sin, 1.0F);
  EXPECT_EQ(detail::sincos_turn(1U << 31).cos, -1.0F);
  EXPECT_EQ(detail::sincos_turn(3U << 30).sin, -1.0F);
}

TEST(BoxMuller, IsFiniteAtTheEdges) {
  for (const uint32_t radius : {0U, 1U, 0x7fffffffU, 0xfffffffeU, 0xffffffffU}) {
    for (const uint32_t angle : {0U, 1U, 0x1fffffffU, 0x20000000U, 0xdfffffffU, 0xe0000000U, 0xffffffffU}) {
      const auto pair = detail::box_muller(radius, angle);
      EXPECT_LE(std::hypot(pair.first, pair.second), 6.67F);
    }
  }
}

TEST(RngUniform, CoversTheHalfOpenUnitInterval) {
  const Rng rng({.seed = 5});
  double sum = 0, squares = 0;
  constexpr int kCount = 1 << 18;
  for (int i = 0; i < kCount; ++i) {
    const double x = rng.uniform(static_cast<uint64_t>(i));
    ASSERT_GE(x, 0.0);
    ASSERT_LT(x, 1.0);
    EXPECT_EQ(x * 0x1p53, std::floor(x * 0x1p53));
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kCount, 0.5, 4 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 4 * std::sqrt(4.0 / 45 / kCount));
}

TEST(RngBelow, IsEvenOverASmallRange) {
  const Rng rng({.seed = 6});
  std::vector<int> counts(7);
  constexpr int kCount = 70000;
  for (int i = 0; i < kCount; ++i) ++counts.at(rng.below(static_cast<uint64_t>(i), 7));
  double chi_squared = 0;
  for (const int count : counts) chi_squared += (count - 10000.0) * (count - 10000.0) / 10000;
  EXPECT_LT(chi_squared, 22.5);  // 6 degrees of freedom: exceeded once in a thousand
  EXPECT_EQ(rng.below(0, 1), 0U);
  testing::expect_error(ErrorCode::kInternal, {"n > 0"}, [&] { (void)rng.below(0, 0); });
}

TEST(RngPermutation, HoldsEveryIndexOnceAndDependsOnTheKey) {
  const auto order = Rng({.seed = 8}).permutation(1000);
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  std::vector<uint32_t> expected(1000);
  std::iota(expected.begin(), expected.end(), 0U);
  EXPECT_EQ(sorted, expected);
  EXPECT_NE(order, expected);
  EXPECT_EQ(order, Rng({.seed = 8}).permutation(1000));
  EXPECT_NE(order, Rng({.seed = 9}).permutation(1000));
  EXPECT_TRUE(Rng({}).permutation(0).empty());
}

TEST(RngPermutation, IsUniformOverThreeElements) {
  std::vector<int> counts(27);
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    const auto p = Rng({.seed = seed}).permutation(3);
    ++counts[p[0] * 9 + p[1] * 3 + p[2]];
  }
  double chi_squared = 0;
  int orders = 0;
  for (const int count : counts) {
    if (count == 0) continue;
    ++orders;
    chi_squared += (count - 1000.0) * (count - 1000.0) / 1000;
  }
  EXPECT_EQ(orders, 6);
  EXPECT_LT(chi_squared, 20.5);  // 5 degrees of freedom: exceeded once in a thousand
}

}  // namespace
}  // namespace coppice
