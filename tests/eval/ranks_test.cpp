// Several ranks evaluate as one does.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "coppice/eval/agreement.h"
#include "coppice/eval/multiple_choice.h"
#include "coppice/eval/perplexity.h"
#include "tests/dist/thread_ranks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::eval {
namespace {

using testing::borrowed;
using testing::run_ranks;
using testing::TempDir;

struct Ranks {
  int64_t size, expert_parallel;
};
const std::vector<Ranks> kRanks{{2, 1}, {2, 2}, {4, 2}, {6, 3}};

// Each byte is a token.
class ByteTokenizer final : public data::Tokenizer {
 public:
  int64_t vocab_size() const override { return 64; }
  int32_t eos_id() const override { return 0; }
  std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> documents) const override {
    std::vector<std::vector<int32_t>> out;
    for (const auto text : documents) {
      auto& ids = out.emplace_back();
      for (const char c : text) ids.push_back(static_cast<int32_t>(c) % 64);
    }
    return out;
  }
  std::string digest() const override { return {}; }
};

struct Fixture {
  Fixture() { at::set_num_threads(1); }  // too little work for more

  families::Model make(const std::string& name, uint64_t seed) const {
    return families::open_model(testing::tiny_model(
        dir / name, "glm4_moe", {.sizes = {.vocab_size = 64, .num_experts = 6}, .seed = seed, .std = 0.2}));
  }

  TempDir dir;
  families::Model model = make("m", 1), other = make("o", 2);
  // 11 windows of 16 and a shorter one.
  data::TokenFile tokens = data::TokenFile::open(testing::write_tokens(dir / "t", 64, 3, 62));
};

// In memory, and a layer at a time; passes of several windows, of one, and of fewer windows than ranks.
TEST(TokenLossOnRanks, IsThatOfOneRank) {
  const Fixture f;
  for (const int64_t batch : {1, 3, 100}) {
    const LossSettings settings{.sequence_length = 16, .batch = batch, .reset_attention = batch == 3};
    const auto wanted = token_loss(nn::Decoder::load(f.model, nn::ComputeDtype::kF32), f.tokens, settings);
    const auto expect = [&](const TokenLoss& found) {
      EXPECT_EQ(found.tokens, wanted.tokens);
      EXPECT_NEAR(found.loss, wanted.loss, 1e-6 * wanted.loss);
      EXPECT_NEAR(found.loss_variance, wanted.loss_variance, 1e-5 * wanted.loss_variance);
      EXPECT_EQ(found.moe_layers, wanted.moe_layers);
      EXPECT_EQ(found.expert_counts, wanted.expert_counts);
    };
    for (const auto& [size, expert_parallel] : kRanks) {
      SCOPED_TRACE(cat(size, " ranks, expert groups of ", expert_parallel, ", batch ", batch));
      run_ranks(size,
                [&](dist::World& world) {
                  at::set_num_threads(1);
                  const auto division = nn::divide(borrowed(world), f.model.config);
                  expect(token_loss(nn::Decoder::load(f.model, nn::ComputeDtype::kF32, at::kCPU, division), f.tokens,
                                    settings));
                  for (const uint64_t bytes : {uint64_t{1} << 30, uint64_t{1}}) {
                    expect(token_loss(nn::FittedDecoder(f.model, nn::ComputeDtype::kF32, bytes, at::kCPU, division),
                                      f.tokens, settings));
                  }
                },
                {.expert_parallel = expert_parallel, .timeout = std::chrono::seconds(60)});
    }
  }
}

TEST(TokenLossOnRanks, TakesAFileOfOneShortWindow) {
  const Fixture f;
  const LossSettings settings{.sequence_length = 400, .batch = 2};
  const auto wanted = token_loss(nn::Decoder::load(f.model, nn::ComputeDtype::kF32), f.tokens, settings);
  run_ranks(2,
            [&](dist::World& world) {
              at::set_num_threads(1);
              const nn::FittedDecoder model(f.model, nn::ComputeDtype::kF32, uint64_t{1} << 30, at::kCPU,
                                            nn::divide(borrowed(world), f.model.config));
              const auto found = token_loss(model, f.tokens, settings);
              EXPECT_EQ(found.tokens, wanted.tokens);
              EXPECT_NEAR(found.loss, wanted.loss, 1e-6 * wanted.loss);
              EXPECT_EQ(found.expert_counts, wanted.expert_counts);
            },
            {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

TEST(AgreementOnRanks, IsThatOfOneRank) {
  const Fixture f;
  const LossSettings settings{.sequence_length = 16, .batch = 2};
  const auto fitted = [](const families::Model& model, uint64_t bytes, const nn::Division& division = {}) {
    return nn::FittedDecoder(model, nn::ComputeDtype::kF32, bytes, at::kCPU, division);
  };
  const auto wanted =
      agreement(fitted(f.model, uint64_t{1} << 30), fitted(f.other, uint64_t{1} << 30), f.tokens, settings);
  ASSERT_GT(wanted.kl, 0);
  for (const auto& [size, expert_parallel] : kRanks) {
    run_ranks(size,
              [&](dist::World& world) {
                at::set_num_threads(1);
                const auto division = nn::divide(borrowed(world), f.model.config);
                const auto found = agreement(fitted(f.model, 1, division), fitted(f.other, uint64_t{1} << 30, division),
                                             f.tokens, settings);
                EXPECT_EQ(found.tokens, wanted.tokens);
                EXPECT_NEAR(found.kl, wanted.kl, 1e-5 * wanted.kl);
                EXPECT_NEAR(found.top_1, wanted.top_1, 1e-6);
                EXPECT_NEAR(found.loss, wanted.loss, 1e-6 * wanted.loss);
                EXPECT_NEAR(found.other_loss, wanted.other_loss, 1e-6 * wanted.other_loss);
                EXPECT_NEAR(found.largest_difference, wanted.largest_difference, 1e-4);
                EXPECT_NEAR(found.largest_logit, wanted.largest_logit, 1e-4);
              },
              {.expert_parallel = expert_parallel, .timeout = std::chrono::seconds(60)});
  }
}

TEST(ChoicesOnRanks, AreThoseOfOneRank) {
  const Fixture f;
  const ByteTokenizer tokenizer;
  std::vector<Question> questions;
  for (size_t q = 0; q < 5; ++q) {
    questions.push_back({"What is " + std::string(q * 3, 'a'), {"yes", "not at all", std::string(q + 1, 'b')}, q % 3});
  }
  const auto wanted =
      answer(nn::FittedDecoder(f.model, nn::ComputeDtype::kF32, uint64_t{1} << 30), tokenizer, {}, questions);
  for (const auto& [size, expert_parallel] : kRanks) {
    run_ranks(size,
              [&](dist::World& world) {
                at::set_num_threads(1);
                const nn::FittedDecoder model(f.model, nn::ComputeDtype::kF32, uint64_t{1} << 30, at::kCPU,
                                              nn::divide(borrowed(world), f.model.config));
                const auto found = answer(model, tokenizer, {}, questions);
                EXPECT_EQ(found.accuracy, wanted.accuracy);
                EXPECT_EQ(found.normalised_accuracy, wanted.normalised_accuracy);
                for (size_t q = 0; q < questions.size(); ++q) {
                  for (size_t c = 0; c < 3; ++c)
                    EXPECT_NEAR(found.log_likelihoods[q][c], wanted.log_likelihoods[q][c], 1e-4);
                }
              },
              {.expert_parallel = expert_parallel, .timeout = std::chrono::seconds(60)});
  }
}

}  // namespace
}  // namespace coppice::eval
