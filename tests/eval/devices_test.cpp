// Losses and differences of models on a device whose memory the host cannot read.
#include "tests/guarded/devices.h"

#include <gtest/gtest.h>

#include "coppice/eval/agreement.h"
#include "coppice/eval/function_change.h"
#include "coppice/eval/perplexity.h"
#include "coppice/nn/device.h"
#include "tests/guarded/guarded_device.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::eval {
namespace {

struct Fixture {
  Fixture() { at::set_num_threads(1); }  // too little work for more

  families::Model model(const std::string& name, uint64_t seed) const {
    return families::open_model(
        testing::tiny_model(dir / name, "glm4_moe", {.sizes = {.vocab_size = 64}, .seed = seed}));
  }

  testing::TempDir dir;
  families::Model first = model("first", 1), second = model("second", 2);
  data::TokenFile tokens = data::TokenFile::open(testing::write_tokens(dir / "t", 64, 3, 35));  // 105 tokens
};

TEST(TokenLossOnADevice, IsThatOfTheCpu) {
  const Fixture f;
  for (const auto dtype : {nn::ComputeDtype::kF32, nn::ComputeDtype::kBf16}) {
    for (const bool reset : {false, true}) {
      const LossSettings settings{.sequence_length = 16, .batch = 4, .reset_attention = reset};
      const auto wanted = token_loss(nn::Decoder::load(f.first, dtype), f.tokens, settings);
      const auto expect = [&](const TokenLoss& found) {
        EXPECT_NEAR(found.loss, wanted.loss, dtype == nn::ComputeDtype::kF32 ? 1e-5 : 1e-2);
        EXPECT_EQ(found.tokens, wanted.tokens);
        EXPECT_EQ(found.moe_layers, wanted.moe_layers);
        if (dtype == nn::ComputeDtype::kF32) {
          EXPECT_EQ(found.expert_counts, wanted.expert_counts);
        }
      };
      expect(token_loss(nn::Decoder::load(f.first, dtype, guarded::kGuarded), f.tokens, settings));
      for (const uint64_t bytes : {uint64_t{1}, uint64_t{1} << 30}) {
        expect(token_loss(nn::FittedDecoder(f.first, dtype, bytes, guarded::kGuarded), f.tokens, settings));
      }
    }
  }
}

// Once a file, and in f32 in each MoE layer of a pass (kernels/moe.h).
TEST(TokenLossOnADevice, IsReadOnce) {
  const Fixture f;
  const auto model = nn::Decoder::load(f.first, nn::ComputeDtype::kF32, guarded::kGuarded);
  const long before = guarded::counters().copies_to_host;
  (void)token_loss(model, f.tokens, {.sequence_length = 16, .batch = 4});
  const long passes = 3;  // six windows of 16, four a pass, and the 8 tokens that are left
  EXPECT_EQ(guarded::counters().copies_to_host - before, 1 + passes * f.first.config.num_moe_layers());
}

TEST(AgreementOnADevice, IsThatOfTheCpu) {
  const Fixture f;
  const auto compare = [&](at::Device device, uint64_t bytes) {
    const nn::FittedDecoder first(f.first, nn::ComputeDtype::kF32, bytes, device),
        second(f.second, nn::ComputeDtype::kF32, bytes, device);
    return agreement(second, first, f.tokens, {.sequence_length = 16, .batch = 4});
  };
  const auto wanted = compare(guarded::kCpu, 1 << 30);
  EXPECT_GT(wanted.kl, 0);
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{1} << 30}) {
    const auto found = compare(guarded::kGuarded, bytes);
    EXPECT_NEAR(found.kl, wanted.kl, 1e-5);
    EXPECT_EQ(found.top_1, wanted.top_1);
    EXPECT_NEAR(found.loss, wanted.loss, 1e-5);
    EXPECT_NEAR(found.other_loss, wanted.other_loss, 1e-5);
    EXPECT_NEAR(found.largest_difference, wanted.largest_difference, 1e-5);
    EXPECT_NEAR(found.largest_logit, wanted.largest_logit, 1e-5);
  }
}

TEST(FunctionChangeOnADevice, IsThatOfTheCpu) {
  const Fixture f;
  std::map<int64_t, std::vector<int64_t>> parents;
  for (int64_t layer = 0; layer < f.second.config.num_layers; ++layer) parents[layer] = {0, 0, 1, 1};
  FunctionSettings settings{.tokens = f.dir / "t", .device = "cpu"};
  const auto wanted = function_change(f.first, f.second, parents, settings);
  settings.device = nn::device_name(guarded::kGuarded);
  const auto found = function_change(f.first, f.second, parents, settings);
  EXPECT_NEAR(found.kl, wanted.kl, 1e-5);
  EXPECT_NEAR(found.loss_after, wanted.loss_after, 1e-5);
  ASSERT_TRUE(found.ties && found.effective_top_k);
  EXPECT_EQ(*found.ties, *wanted.ties);
  EXPECT_EQ(*found.effective_top_k, *wanted.effective_top_k);
}

}  // namespace
}  // namespace coppice::eval
