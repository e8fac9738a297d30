#include "coppice/nn/fitted_decoder.h"

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::nn {
namespace {

using testing::TempDir;

struct Fixture {
  Fixture() { at::set_num_threads(1); }  // too little work for more

  TempDir dir;
  families::Model model = families::open_model(testing::tiny_model(
      dir / "m", "glm4_moe", {.sizes = {.vocab_size = 64, .num_layers = 5, .first_dense_layers = 1}}));
  // Several passes; no sequence starts like another.
  at::Tensor tokens_BS = at::randint(64, {150, 33}, at::kLong), target_BS = at::randint(64, {150, 33}, at::kLong);
};

TEST(FittedDecoder, ComputesWhatDecoderDoesBitForBit) {
  const Fixture f;
  f.target_BS.narrow(1, 20, 13).fill_(-1);
  for (const auto dtype : {ComputeDtype::kF32, ComputeDtype::kBf16}) {
    const auto decoder = Decoder::load(f.model, dtype);
    at::Tensor wanted_counts_B, counts_B;
    std::vector<LayerRouting> wanted_routing, routing;
    const auto wanted_B = decoder.sequence_loss(f.tokens_BS, f.target_BS, {}, wanted_counts_B, &wanted_routing);
    for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{600'000}}) {
      const FittedDecoder fitted(f.model, dtype, bytes);
      EXPECT_EQ(fitted.is_whole(), bytes == 0);
      routing.clear();
      const auto sum_B = fitted.sequence_loss(f.tokens_BS, f.target_BS, {}, counts_B, &routing);
      EXPECT_TRUE(at::equal(sum_B, wanted_B)) << bytes;
      EXPECT_TRUE(at::equal(counts_B, wanted_counts_B));
      ASSERT_EQ(routing.size(), wanted_routing.size());
      for (size_t i = 0; i < routing.size(); ++i) {
        EXPECT_EQ(routing[i].layer, wanted_routing[i].layer);
        EXPECT_TRUE(at::equal(routing[i].count_E, wanted_routing[i].count_E));
      }
    }
  }
}

// Of passes of other sizes than Decoder's: libtorch's last elements of a vector can round otherwise. Losses are some 100.
constexpr double kCutInPasses = 1e-5;

double difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

// Multipliers, centred norms, biases of experts, windows and sinks, latent attention.
class FittedDecoderOf : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, FittedDecoderOf,
                         ::testing::Values("granitemoe", "gemma", "gpt_oss", "deepseek_v3", "solar_open"),
                         [](const auto& param_info) { return std::string(param_info.param); });

TEST_P(FittedDecoderOf, ComputesWhatDecoderDoesOverPackedDocuments) {
  at::set_num_threads(1);
  const TempDir dir;
  const auto model =
      families::open_model(testing::tiny_model(dir / "m", GetParam(), {.sizes = {.vocab_size = 64, .num_layers = 3}}));
  const auto tokens_BS = at::randint(64, {70, 33}, at::kLong), target_BS = at::randint(64, {70, 33}, at::kLong);
  const auto start_BS = at::zeros({70, 33}, at::kLong);
  for (int64_t b = 0; b < 70; ++b) start_BS.select(0, b).narrow(0, b % 32, 33 - b % 32).fill_(b % 32);
  const ForwardOptions options{.document_start_BS = start_BS};
  at::Tensor counts_B;
  const auto wanted_B = Decoder::load(model, ComputeDtype::kF32).sequence_loss(tokens_BS, target_BS, options, counts_B);
  const FittedDecoder whole(model, ComputeDtype::kF32, 0), small(model, ComputeDtype::kF32, 1);
  const auto found_B = whole.sequence_loss(tokens_BS, target_BS, options, counts_B);
  EXPECT_LE(difference(found_B, wanted_B), kCutInPasses);
  EXPECT_TRUE(at::equal(small.sequence_loss(tokens_BS, target_BS, options, counts_B), found_B));
  EXPECT_GT(difference(whole.sequence_loss(tokens_BS, target_BS, {}, counts_B), wanted_B), 1e-3) << "documents matter";
}

TEST(FittedDecoder, RoutesByLineageAsDecoderDoes) {
  const Fixture f;
  std::map<int64_t, std::vector<uint32_t>> parents;
  for (int64_t layer = 1; layer < 5; ++layer) {
    for (uint32_t e = 0; e < f.model.config.num_experts; ++e) parents[layer].push_back(e / 2);
  }
  const auto lineage = std::make_shared<LineageRouting>(
      std::make_shared<Lineage>(parents, f.model.config.num_experts / 2), 0.5);  // drawn by the number of the token
  const ForwardOptions options{.lineage = lineage, .first_token = 1000};
  at::Tensor counts_B;
  const auto decoder = Decoder::load(f.model, ComputeDtype::kF32);
  const auto wanted_B = decoder.sequence_loss(f.tokens_BS, f.target_BS, options, counts_B);
  EXPECT_GT(difference(decoder.sequence_loss(f.tokens_BS, f.target_BS, {}, counts_B), wanted_B), 1e-3);
  const FittedDecoder whole(f.model, ComputeDtype::kF32, 0), small(f.model, ComputeDtype::kF32, 1);
  const auto found_B = whole.sequence_loss(f.tokens_BS, f.target_BS, options, counts_B);
  EXPECT_LE(difference(found_B, wanted_B), kCutInPasses);
  EXPECT_TRUE(at::equal(small.sequence_loss(f.tokens_BS, f.target_BS, options, counts_B), found_B));
}

TEST(FittedDecoder, WantsAsManySequencesAsMemoryHasRoomFor) {
  const Fixture f;
  const FittedDecoder whole(f.model, ComputeDtype::kF32, 0), small(f.model, ComputeDtype::kF32, 1);
  EXPECT_EQ(whole.sequences_at_once(256, 8), 8);
  EXPECT_EQ(small.sequences_at_once(256, 1), 8) << "one pass at least";
  const FittedDecoder more(f.model, ComputeDtype::kF32, 1'000'000);
  ASSERT_FALSE(more.is_whole());
  const int64_t wanted = more.sequences_at_once(4, 1);
  EXPECT_GE(wanted, 512);
  EXPECT_LE(wanted * 4 * 64 * 4, 1'000'000);
}

TEST(FittedDecoder, RefusesIdsOutsideTheVocabulary) {
  const Fixture f;
  const FittedDecoder decoder(f.model, ComputeDtype::kF32, 1);
  testing::expect_error(ErrorCode::kFormat, {"token id 64", "wanted ids below 64"}, [&] {
    (void)decoder.token_losses(at::full({1, 2}, 64, at::kLong), at::full({1, 2}, 1, at::kLong), {});
  });
}

TEST(PlanSegments, TakesAsManyLayersTogetherAsFit) {
  const Fixture f;
  const LayeredDecoder decoder(f.model, ComputeDtype::kF32);
  EXPECT_EQ(plan_segments(decoder, 5, 1, Purpose::kForward).size(), 5u);
  EXPECT_EQ(plan_segments(decoder, 5, uint64_t{1} << 40, Purpose::kForward).size(), 1u);
  const uint64_t two = segment_bytes(decoder, {3, 5}, Purpose::kGradients);
  const auto segments = plan_segments(decoder, 5, two, Purpose::kGradients);
  EXPECT_EQ(segments.back().first, 3);
  int64_t end = 0;
  for (const Segment& s : segments) {
    EXPECT_EQ(s.first, end);
    EXPECT_LE(segment_bytes(decoder, s, Purpose::kGradients), two);
    end = s.last;
  }
  EXPECT_EQ(end, 5);
}

}  // namespace
}  // namespace coppice::nn
