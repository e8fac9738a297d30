// Which of the CPU's variants runs, for any processor.
#include <gtest/gtest.h>

#include "coppice/kernels/cpu/processor_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr Processor kOld{}, kAvx512{.avx512 = true}, kZen{.avx512 = true, .avx512_bf16 = true},
    kXeon{.avx512 = true, .avx512_bf16 = true, .amx_bf16 = true, .intel = true},
    kXeonWithoutTiles{.avx512 = true, .avx512_bf16 = true, .intel = true};

ExpertsShape experts_of(int64_t rows_an_expert) {
  return {.pairs = 8 * rows_an_expert, .experts = 8, .dim = 64, .width = 96, .is_plain = true};
}

TEST(PickExperts, TakesWordsWhereTheProcessorHasThem) {
  const auto shape = experts_of(200);
  EXPECT_EQ(pick_experts(kOld, shape, at::kFloat), Path::kLibtorch);
  EXPECT_EQ(pick_experts(kOld, shape, at::kBFloat16), Path::kLibtorch);
  EXPECT_EQ(pick_experts(kAvx512, shape, at::kFloat), Path::kWords);
  EXPECT_EQ(pick_experts(kAvx512, shape, at::kBFloat16), Path::kLibtorch);
  EXPECT_EQ(pick_experts(kZen, shape, at::kFloat), Path::kWords);
  EXPECT_EQ(pick_experts(kZen, shape, at::kBFloat16), Path::kWords);
}

TEST(PickExperts, TakesTilesInBf16AndMklInF32WhereTheyAreFast) {
  EXPECT_EQ(pick_experts(kXeon, experts_of(1), at::kBFloat16), Path::kTiles);
  EXPECT_EQ(pick_experts(kXeon, experts_of(200), at::kBFloat16), Path::kTiles);
  EXPECT_EQ(pick_experts(kXeon, experts_of(200), at::kFloat), Path::kLibtorch) << "tiles have no f32";
}

TEST(PickExperts, TakesProductsInF32WhereTheyAreFaster) {
  for (const Processor& slow : {kOld, kAvx512, kXeonWithoutTiles}) EXPECT_FALSE(has_fast_bf16(slow));
  for (const Processor& fast : {kZen, kXeon}) EXPECT_TRUE(has_fast_bf16(fast));
  EXPECT_EQ(pick_experts(kXeonWithoutTiles, experts_of(64), at::kBFloat16), Path::kLibtorch);
  EXPECT_EQ(pick_experts(kXeonWithoutTiles, experts_of(63), at::kBFloat16), Path::kWords) << "widening takes longer";
}

TEST(PickExperts, TakesLanesForNarrowExpertsInF32) {
  auto shape = experts_of(200);
  shape.width = 32;
  for (const Processor& any : {kOld, kAvx512, kZen, kXeon})
    EXPECT_EQ(pick_experts(any, shape, at::kFloat), Path::kLanes);
  EXPECT_EQ(pick_experts(kZen, shape, at::kBFloat16), Path::kWords);
  shape.is_plain = false;
  EXPECT_EQ(pick_experts(kZen, shape, at::kFloat), Path::kLibtorch);
}

TEST(PickExperts, LeavesWhatWordsDoNotHaveToLibtorch) {
  auto shape = experts_of(200);
  shape.is_plain = false;
  EXPECT_EQ(pick_experts(kZen, shape, at::kFloat), Path::kLibtorch);
  for (int64_t ExpertsShape::* const size : {&ExpertsShape::dim, &ExpertsShape::width}) {
    shape = experts_of(200);
    shape.*size += 16;
    EXPECT_EQ(pick_experts(kZen, shape, at::kFloat), Path::kLibtorch);
  }
  EXPECT_EQ(pick_experts(kZen, experts_of(200), at::kDouble), Path::kLibtorch);
}

TEST(PickAttention, TakesWordsInBlocksOf32) {
  const AttentionShape fits{.positions = 64, .heads = 6, .key_heads = 3, .dim = 64};
  EXPECT_EQ(pick_attention(kOld, fits, at::kFloat), Path::kLibtorch);
  EXPECT_EQ(pick_attention(kAvx512, fits, at::kFloat), Path::kWords);
  EXPECT_EQ(pick_attention(kAvx512, fits, at::kBFloat16), Path::kLibtorch);
  EXPECT_EQ(pick_attention(kZen, fits, at::kBFloat16), Path::kWords);
  for (auto size : {&AttentionShape::positions, &AttentionShape::dim, &AttentionShape::heads}) {
    auto other = fits;
    other.*size += 1;
    EXPECT_EQ(pick_attention(kZen, other, at::kBFloat16), Path::kLibtorch);
  }
  auto none = fits;
  none.positions = 0;
  EXPECT_EQ(pick_attention(kZen, none, at::kBFloat16), Path::kLibtorch);
}

TEST(PickAttention, TakesLanesForNarrowHeadsOverShortSequences) {
  const AttentionShape small{.positions = 100, .heads = 4, .key_heads = 2, .dim = 16};
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Processor& any : {kOld, kAvx512, kZen, kXeon}) {
      EXPECT_EQ(pick_attention(any, small, dtype), Path::kLanes);
    }
  }
  EXPECT_EQ(pick_attention(kOld, small, at::kDouble), Path::kLibtorch);
  auto wide = small, longer = small, odd = small;
  wide.dim = 48;
  longer.positions = 544;
  odd.dim = 24;
  for (const auto& other : {wide, longer, odd}) EXPECT_EQ(pick_attention(kOld, other, at::kFloat), Path::kLibtorch);
}

TEST(PickAttention, TakesLanesWhereF32IsFaster) {
  AttentionShape shape{.positions = 256, .heads = 8, .key_heads = 8, .dim = 32};
  EXPECT_EQ(pick_attention(kXeonWithoutTiles, shape, at::kBFloat16), Path::kLanes);
  EXPECT_EQ(pick_attention(kXeonWithoutTiles, shape, at::kFloat), Path::kWords);
  shape.dim = 64;
  EXPECT_EQ(pick_attention(kXeonWithoutTiles, shape, at::kBFloat16), Path::kWords);
}

TEST(PickAttention, TakesTilesInBf16WhereThereAreSome) {
  for (const int64_t dim : {32, 64, 128}) {
    const AttentionShape shape{.positions = 64, .heads = 2, .key_heads = 2, .dim = dim};
    EXPECT_EQ(pick_attention(kXeon, shape, at::kBFloat16), Path::kTiles);
    EXPECT_EQ(pick_attention(kXeon, shape, at::kFloat), Path::kWords);
  }
}

TEST(ThisProcessor, HasWhatItsFeaturesImply) {
  const Processor& p = this_processor();
  EXPECT_TRUE(p.avx512 || !p.avx512_bf16);
  EXPECT_EQ(&p, &this_processor());
}

}  // namespace
}  // namespace coppice::kernels::cpu
