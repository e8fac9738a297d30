#include "coppice/eval/perplexity.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/log_softmax.h>
#include <gtest/gtest.h>

#include <cmath>

#include "coppice/base/rng.h"
#include "coppice/eval/windows_detail.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::eval {
namespace {

using testing::TempDir;

struct Fixture {
  Fixture() { at::set_num_threads(1); }  // too little work for more

  TempDir dir;
  nn::Decoder model =
      nn::Decoder::load(families::open_model(testing::tiny_model(dir / "m", "glm4_moe", {.sizes = {.vocab_size = 64}})),
                        nn::ComputeDtype::kF32);
  data::TokenFile tokens = data::TokenFile::open(testing::write_tokens(dir / "t", 64, 3, 35));  // 105 tokens
};

// The definition: every token but the first, from the tokens of its own window before it.
TEST(TokenLoss, IsTheMeanOverEveryTokenOfItsOwnWindow) {
  const Fixture f;
  constexpr uint64_t kLength = 16;
  std::vector<int64_t> ids(105);
  f.tokens.read(0, ids);
  double sum = 0;
  for (uint64_t begin = 0; begin < 104; begin += kLength) {
    const auto size = static_cast<int64_t>(std::min(kLength, 104 - begin));
    const at::Tensor logits = f.model.logits(at::from_blob(ids.data() + begin, {1, size}, at::kLong).clone(), {});
    const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
    for (int64_t i = 0; i < size; ++i) sum -= log_p[0][i][ids[begin + i + 1]].item<double>();
  }
  const auto loss = token_loss(f.model, f.tokens, {.sequence_length = kLength, .batch = 4});
  EXPECT_EQ(loss.tokens, 104u);
  EXPECT_NEAR(loss.loss, sum / 104, 1e-6);
  EXPECT_NEAR(loss.perplexity(), std::exp(sum / 104), 1e-4);
}

// The definition, window by window.
detail::Windows plain_windows(uint64_t predictions, uint64_t length, uint64_t max_tokens) {
  const bool limited = max_tokens > 0 && max_tokens < predictions;
  detail::Windows out;
  while ((out.whole + 1) * length <= predictions) {
    if (limited && out.whole > 0 && (out.whole + 1) * length > max_tokens) return out;
    ++out.whole;
  }
  if (!limited || out.whole == 0) out.rest = predictions - out.whole * length;
  return out;
}

TEST(Windows, LieInTheFileWhateverTheNumbers) {
  const TempDir dir;
  const Rng rng({.seed = 3});
  for (uint64_t trial = 0; trial < 60; ++trial) {
    const auto draw = [&](uint64_t which, uint64_t below) { return rng.below(1000 * trial + which, below); };
    const uint64_t count = 2 + draw(0, trial % 3 == 0 ? 6 : 90);
    const auto tokens = data::TokenFile::open(testing::write_tokens(dir / std::to_string(trial), 64, 1, count));
    for (uint64_t i = 1; i < 40; ++i) {
      const uint64_t length = 1 + draw(2 * i, i % 2 ? 8 : 120);
      const uint64_t most = i % 5 == 0 ? 0 : draw(2 * i + 1, i % 3 == 0 ? 10 : 130);
      const auto found =
          detail::windows_of(tokens, {.sequence_length = static_cast<int64_t>(length), .max_tokens = most});
      const auto wanted = plain_windows(count - 1, length, most);
      ASSERT_EQ(found.whole, wanted.whole) << count << " tokens, windows of " << length << ", at most " << most;
      ASSERT_EQ(found.rest, wanted.rest) << count << " tokens, windows of " << length << ", at most " << most;
      ASSERT_LE(found.whole * length + found.rest, count - 1);
      ASSERT_GT(found.whole + found.rest, 0u);
    }
  }
}

TEST(TokenLoss, OfAFileShorterThanAWindowIsOfAllItsTokens) {
  const Fixture f;
  for (const uint64_t count : {2, 3, 16}) {
    const auto tokens = data::TokenFile::open(testing::write_tokens(f.dir / std::to_string(count), 64, 1, count));
    for (const uint64_t most : {0, 1, 2, 15, 50}) {
      EXPECT_EQ(token_loss(f.model, tokens, {.sequence_length = 16, .max_tokens = most}).tokens, count - 1)
          << count << " tokens, at most " << most;
    }
  }
  for (const uint64_t count : {0, 1}) {
    const auto tokens = data::TokenFile::open(testing::write_tokens(f.dir / std::to_string(count), 64, count, 1));
    testing::expect_error(ErrorCode::kUsage, {"2 or more"},
                          [&] { (void)token_loss(f.model, tokens, {.max_tokens = 1}); });
  }
}

// Documents of 35 tokens in windows of 16: a token sees from the later of the two starts on.
TEST(TokenLoss, OfDocumentsApartIsThatOfTheirPartsOfAWindow) {
  const Fixture f;
  constexpr uint64_t kLength = 16, kDocument = 35;
  std::vector<int64_t> ids(105);
  f.tokens.read(0, ids);
  double sum = 0;
  for (uint64_t begin = 0, end; begin < 104; begin = end) {
    end = std::min<uint64_t>({104, (begin / kLength + 1) * kLength, (begin / kDocument + 1) * kDocument});
    const auto size = static_cast<int64_t>(end - begin);
    const at::Tensor logits = f.model.logits(at::from_blob(ids.data() + begin, {1, size}, at::kLong).clone(), {});
    const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
    for (int64_t i = 0; i < size; ++i) sum -= log_p[0][i][ids[begin + i + 1]].item<double>();
  }
  const auto loss = token_loss(f.model, f.tokens, {.sequence_length = kLength, .batch = 4, .reset_attention = true});
  EXPECT_EQ(loss.tokens, 104u);
  EXPECT_NEAR(loss.loss, sum / 104, 1e-6);
  EXPECT_GT(std::abs(loss.loss - token_loss(f.model, f.tokens, {.sequence_length = kLength}).loss), 1e-5);
}

TEST(TokenLoss, DoesNotDependOnTheBatch) {
  const Fixture f;
  const auto one = token_loss(f.model, f.tokens, {.sequence_length = 16, .batch = 1});
  const auto many = token_loss(f.model, f.tokens, {.sequence_length = 16, .batch = 64});
  EXPECT_NEAR(one.loss, many.loss, 1e-6);
  EXPECT_EQ(one.tokens, many.tokens);
}

TEST(TokenLoss, IsTheSameOfAModelThatDoesNotFit) {
  const Fixture f;
  const auto model = families::open_model(f.dir / "m");
  for (const bool reset : {false, true}) {
    const LossSettings settings{.sequence_length = 16, .batch = 4, .reset_attention = reset};
    const auto wanted = token_loss(f.model, f.tokens, settings);
    for (const uint64_t bytes : {uint64_t{1}, uint64_t{1} << 30}) {
      const nn::FittedDecoder fitted(model, nn::ComputeDtype::kF32, bytes);
      const auto found = token_loss(fitted, f.tokens, settings);
      EXPECT_NEAR(found.loss, wanted.loss, 1e-6);
      EXPECT_EQ(found.tokens, wanted.tokens);
      EXPECT_EQ(found.expert_counts, wanted.expert_counts);
      EXPECT_FALSE(found.bits_per_byte(f.tokens).has_value()) << "nothing says how long the text was";
    }
  }
}

// Finite weights whose logits are not: nothing is said of such a model.
TEST(TokenLoss, IsRefusedWhereItIsNoFiniteNumber) {
  Fixture f;
  for (nn::Parameter& parameter : f.model.parameters()) {
    if (parameter.role != families::Role::kLmHead) continue;
    parameter.master.fill_(1e38f);  // logits overflow
    parameter.master.select(0, 0).fill_(-1e38f);
  }
  testing::expect_error(ErrorCode::kNonFinite, {"loss", "wanted a finite number"},
                        [&] { (void)token_loss(f.model, f.tokens, {.sequence_length = 16}); });
}

TEST(TokenLoss, CountsEveryRoutedPair) {
  const Fixture f;
  const auto loss = token_loss(f.model, f.tokens, {.sequence_length = 16, .batch = 4});
  ASSERT_EQ(loss.expert_counts.size(), loss.moe_layers.size());
  ASSERT_FALSE(loss.expert_counts.empty());
  for (const auto& counts : loss.expert_counts) {
    int64_t pairs = 0;
    for (const int64_t count : counts) pairs += count;
    EXPECT_EQ(pairs, static_cast<int64_t>(loss.tokens) * f.model.config().top_k);
  }
}

TEST(TokenLoss, UsesTheFirstWholeWindowsWhenLimited) {
  const Fixture f;
  EXPECT_EQ(token_loss(f.model, f.tokens, {.sequence_length = 16, .max_tokens = 50}).tokens, 48u);
  EXPECT_EQ(token_loss(f.model, f.tokens, {.sequence_length = 16, .max_tokens = 5000}).tokens, 104u);
}

TEST(TokenLoss, GivesTheVarianceOfTheMeanOverSequences) {
  const Fixture f;
  const auto loss = token_loss(f.model, f.tokens, {.sequence_length = 16});
  EXPECT_GT(loss.loss_variance, 0);
  EXPECT_LT(std::sqrt(loss.loss_variance), 1.0);
  EXPECT_TRUE(std::isnan(token_loss(f.model, f.tokens, {.sequence_length = 104}).loss_variance));
}

TEST(TokenLoss, RefusesAFileWithNothingToPredict) {
  const Fixture f;
  const auto single = data::TokenFile::open(testing::write_tokens(f.dir / "one", 64, 1, 1));
  testing::expect_error(ErrorCode::kUsage, {"1 tokens"}, [&] { (void)token_loss(f.model, single, {}); });
}

}  // namespace
}  // namespace coppice::eval
