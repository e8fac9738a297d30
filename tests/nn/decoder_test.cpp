#include "coppice/nn/decoder.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "coppice/nn/host.h"
#include "coppice/nn/trunk_detail.h"
#include "tests/nn/tiny_decoders.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::nn {
namespace {

using coppice::testing::expect_error;
using coppice::testing::TempDir;
using coppice::testing::tiny_model;
using families::Role;

class DecoderOf : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // the models are too small to share out

  families::Model model(io::Dtype dtype = io::Dtype::kF32) {
    return families::open_model(tiny_model(dir_ / std::string(io::dtype_name(dtype)), GetParam(),
                                           {.sizes = sizes_of(GetParam()), .dtype = dtype, .std = 0.2}));
  }

 private:
  TempDir dir_;
};

INSTANTIATE_TEST_SUITE_P(Families, DecoderOf,
                         ::testing::Values("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "glm4_moe", "llama", "qwen2",
                                           "qwen3", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "gpt_oss",
                                           "granitemoe", "granitemoeshared", "minimax_m2", "mistral", "phi3", "gemma",
                                           "dots1", "solar_open"),
                         [](const auto& param_info) { return std::string(param_info.param); });

struct Batch {
  at::Tensor tokens_BS, target_BS;
};
Batch make_batch() {
  at::manual_seed(2);
  return {at::randint(0, kSizes.vocab_size, {3, 16}, at::kLong), at::randint(0, kSizes.vocab_size, {3, 16}, at::kLong)};
}

std::vector<at::Tensor> gradients(Decoder& decoder, const ForwardOptions& options, int64_t micro_batches = 1) {
  const auto batch = make_batch();
  for (auto& p : decoder.parameters()) p.value.mutable_grad() = at::Tensor();
  for (int64_t i = 0; i < micro_batches; ++i) decoder.loss(batch.tokens_BS, batch.target_BS, options).loss.backward();
  std::vector<at::Tensor> out;
  for (auto& p : decoder.parameters()) out.push_back(p.value.grad().clone());
  return out;
}

TEST_P(DecoderOf, GivesBackEveryTensorOfItsCheckpointInTheTablesOrder) {
  for (const auto dtype : {io::Dtype::kF32, io::Dtype::kBf16}) {
    const auto source = model(dtype);
    const auto decoder = Decoder::load(source, ComputeDtype::kBf16);
    const auto expected = families::expected_tensors(source.config);
    size_t seen = 0;
    decoder.visit([&](const families::TensorSlot& slot, std::span<const float> values) {
      ASSERT_LT(seen, expected.size());
      EXPECT_EQ(slot.name, expected[seen++].name);
      EXPECT_EQ(std::vector<float>(values.begin(), values.end()), source.checkpoint.read_f32(slot.name)) << slot.name;
    });
    EXPECT_EQ(seen, expected.size());
  }
}

TEST_P(DecoderOf, EveryParameterGetsAGradient) {
  auto decoder = Decoder::load(model(), ComputeDtype::kF32);
  const auto found = gradients(decoder, {});
  for (size_t i = 0; i < found.size(); ++i) {
    const auto& p = decoder.parameters()[i];
    EXPECT_EQ(found[i].sizes(), p.value.sizes());
    EXPECT_GT(found[i].abs().max().item<float>(), 0.0f) << p.slices.front().slot.name;
  }
}

TEST_P(DecoderOf, BothKernelsGiveTheSameGradients) {
  auto decoder = Decoder::load(model(), ComputeDtype::kF32);
  const auto fast = gradients(decoder, {}), plain = gradients(decoder, {.kernel = kernels::MoeKernel::kReference});
  for (size_t i = 0; i < fast.size(); ++i) {
    const auto error = (fast[i] - plain[i]).abs().max().item<float>();
    EXPECT_LE(error, 1e-4 * plain[i].abs().max().item<float>()) << decoder.parameters()[i].slices.front().slot.name;
  }
}

TEST_P(DecoderOf, RecomputationChangesNoBitOfTheGradients) {
  auto decoder = Decoder::load(model(), ComputeDtype::kBf16);
  const ForwardOptions kept{.aux_loss_coef = 0.1, .z_loss_coef = 0.01};
  auto recomputed = kept;
  recomputed.recompute = true;
  const auto a = gradients(decoder, kept, 2), b = gradients(decoder, recomputed, 2);
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_TRUE(at::equal(a[i], b[i])) << decoder.parameters()[i].slices.front().slot.name;
}

/// Mean loss and its gradients over `batch` as one forward pass, or as one for each document of each sequence.
struct Learned {
  double loss = 0;
  std::vector<at::Tensor> gradients;
};

Learned learn(Decoder& decoder, const Batch& batch, const ForwardOptions& options) {
  for (auto& p : decoder.parameters()) p.value.mutable_grad() = at::Tensor();
  const auto out = decoder.loss(batch.tokens_BS, batch.target_BS, options);
  out.loss.backward();
  Learned learned{number(out.token_loss), {}};
  for (auto& p : decoder.parameters()) learned.gradients.push_back(p.value.grad().to(at::kDouble));
  return learned;
}

Learned learn_apart(Decoder& decoder, const Batch& batch, const at::Tensor& start_BS) {
  Learned sum;
  for (int64_t b = 0; b < start_BS.size(0); ++b) {
    for (int64_t begin = 0, end; begin < start_BS.size(1); begin = end) {
      end = begin + start_BS[b].eq(begin).sum().item<int64_t>();
      const auto part = [&](const at::Tensor& t) {
        return t.narrow(0, b, 1).narrow(1, begin, end - begin).contiguous();
      };
      const auto alone = learn(decoder, {part(batch.tokens_BS), part(batch.target_BS)}, {});
      const double share = static_cast<double>(end - begin) / static_cast<double>(start_BS.numel());
      sum.loss += share * alone.loss;
      sum.gradients.resize(alone.gradients.size());
      for (size_t i = 0; i < alone.gradients.size(); ++i) {
        auto& total = sum.gradients[i];
        total = total.defined() ? total + share * alone.gradients[i] : share * alone.gradients[i];
      }
    }
  }
  return sum;
}

/// The start of each token's document, from the documents' starts in each sequence.
at::Tensor starts_of(int64_t positions, const std::vector<std::vector<int64_t>>& documents) {
  const auto start_BS = at::full({static_cast<int64_t>(documents.size()), positions}, 0, at::kLong);
  for (size_t b = 0; b < documents.size(); ++b) {
    for (const int64_t begin : documents[b]) {
      start_BS[static_cast<int64_t>(b)].narrow(0, begin, positions - begin).fill_(begin);
    }
  }
  return start_BS;
}

const at::Tensor& tiny_starts() {
  static const at::Tensor start_BS = starts_of(16, {{0, 7, 8}, {3}, {}});
  return start_BS;
}

void expect_near(const Decoder& decoder, const Learned& found, const Learned& wanted, double tolerance) {
  EXPECT_NEAR(found.loss, wanted.loss, tolerance * wanted.loss);
  double largest = 0;
  for (const auto& g : wanted.gradients) largest = std::max(largest, g.abs().max().item<double>());
  for (size_t i = 0; i < wanted.gradients.size(); ++i) {
    const double error = (found.gradients[i] - wanted.gradients[i]).abs().max().item<double>();
    EXPECT_LE(error, tolerance * largest) << decoder.parameters()[i].slices.front().slot.name;
  }
}

TEST_P(DecoderOf, LearnsFromPackedDocumentsWhatItLearnsFromEach) {
  auto decoder = Decoder::load(model(), ComputeDtype::kF32);
  const auto batch = make_batch();
  const auto apart = learn_apart(decoder, batch, tiny_starts());
  for (const bool recompute : {false, true}) {
    const auto packed = learn(decoder, batch, {.recompute = recompute, .document_start_BS = tiny_starts()});
    expect_near(decoder, packed, apart, 1e-5);
  }
  EXPECT_GT(std::abs(learn(decoder, batch, {}).loss - apart.loss), 1e-4 * apart.loss);  // it matters
}

TEST_P(DecoderOf, RecomputationOfPackedDocumentsChangesNoBit) {
  auto decoder = Decoder::load(model(), ComputeDtype::kBf16);
  const auto a = learn(decoder, make_batch(), {.document_start_BS = tiny_starts()});
  const auto b = learn(decoder, make_batch(), {.recompute = true, .document_start_BS = tiny_starts()});
  EXPECT_EQ(a.loss, b.loss);
  for (size_t i = 0; i < a.gradients.size(); ++i) EXPECT_TRUE(at::equal(a.gradients[i], b.gradients[i])) << i;
}

// Sizes for the attention kernel of our own, where the processor has AVX-512; a document alone goes through libtorch's.
TEST(DecoderPacked, LearnsTheSameWithBothAttentionKernels) {
  at::set_num_threads(1);
  TempDir dir;
  auto sizes = kSizes;
  sizes.head_dim = 32;
  sizes.max_positions = 128;
  const auto source =
      families::open_model(tiny_model(dir / "m", "qwen3_moe", {.sizes = sizes, .dtype = io::Dtype::kBf16, .std = 0.2}));
  at::manual_seed(3);
  const Batch batch{at::randint(0, sizes.vocab_size, {2, 96}, at::kLong),
                    at::randint(0, sizes.vocab_size, {2, 96}, at::kLong)};
  const auto start_BS = starts_of(96, {{0, 1, 33, 64, 90}, {70, 71}});
  auto f32 = Decoder::load(source, ComputeDtype::kF32), bf16 = Decoder::load(source, ComputeDtype::kBf16);
  const auto apart = learn_apart(f32, batch, start_BS);
  expect_near(f32, learn(f32, batch, {.document_start_BS = start_BS}), apart, 1e-5);
  const double noise = std::abs(learn_apart(bf16, batch, start_BS).loss - apart.loss);
  EXPECT_NEAR(learn(bf16, batch, {.document_start_BS = start_BS}).loss, apart.loss, 2 * noise + 0.01);
}

TEST(DecoderPacked, RefusesStartsThatAreNone) {
  TempDir dir;
  const auto decoder =
      Decoder::load(families::open_model(tiny_model(dir / "m", "llama", {.sizes = kSizes})), ComputeDtype::kF32);
  const auto batch = make_batch();
  for (const int64_t wrong : {-1, 4, 16}) {
    const auto start_BS = tiny_starts().clone();
    start_BS[1][5] = wrong;
    expect_error(ErrorCode::kInternal, {"document start"},
                 [&] { (void)decoder.logits(batch.tokens_BS, {.document_start_BS = start_BS}); });
  }
}

TEST_P(DecoderOf, SequencesOfABatchDoNotSeeEachOther) {
  const auto decoder = Decoder::load(model(), ComputeDtype::kF32);
  const auto batch = make_batch();
  const auto together = decoder.logits(batch.tokens_BS, {});
  const auto alone = decoder.logits(batch.tokens_BS.narrow(0, 1, 1).contiguous(), {});
  EXPECT_TRUE(together.narrow(0, 1, 1).allclose(alone, 1e-4, 1e-5));
}

TEST_P(DecoderOf, NoPositionSeesALaterToken) {
  const auto decoder = Decoder::load(model(), ComputeDtype::kF32);
  auto tokens = make_batch().tokens_BS;
  const auto before = decoder.logits(tokens, {});
  tokens.select(1, 10).fill_(3);
  const auto after = decoder.logits(tokens, {});
  EXPECT_TRUE(before.narrow(1, 0, 10).allclose(after.narrow(1, 0, 10), 1e-4, 1e-5));
  EXPECT_FALSE(before.narrow(1, 10, 6).allclose(after.narrow(1, 10, 6), 1e-4, 1e-5));
}

TEST_P(DecoderOf, SequenceLossesAddUpToTheMeanLoss) {
  const auto decoder = Decoder::load(model(), ComputeDtype::kF32);
  auto batch = make_batch();
  batch.target_BS.narrow(1, 0, 5).fill_(-1);
  batch.target_BS[2].fill_(-1);
  at::Tensor counts;
  const auto sums = decoder.sequence_loss(batch.tokens_BS, batch.target_BS, {}, counts);
  EXPECT_EQ(counts[0].item<int64_t>(), 11);
  EXPECT_EQ(counts[2].item<int64_t>(), 0);
  const double mean = sums.sum().item<double>() / counts.sum().item<double>();
  EXPECT_NEAR(number(decoder.loss(batch.tokens_BS, batch.target_BS, {}).token_loss), mean, 1e-5);
}

TEST_P(DecoderOf, ReportsWhatItsMoeLayersDid) {
  const auto source = model();
  const auto decoder = Decoder::load(source, ComputeDtype::kF32);
  const auto batch = make_batch();
  const auto routing = decoder.loss(batch.tokens_BS, batch.target_BS, {.keep_routing = true}).routing;
  size_t next = 0;
  for (int64_t layer = 0; layer < source.config.num_layers; ++layer) {
    if (!source.config.moe_layer[layer]) continue;
    ASSERT_LT(next, routing.size());
    const auto& r = routing[next++];
    EXPECT_EQ(r.layer, layer);
    EXPECT_EQ(r.count_E.sum().item<int64_t>(), batch.tokens_BS.numel() * source.config.top_k);
    EXPECT_EQ(r.index_TK.size(0), batch.tokens_BS.numel());
    if (source.config.routing.renormalise) {
      EXPECT_NEAR(r.gate_mass_E.sum().item<double>(), 48.0, 1e-4);  // 1 a token
    }
  }
  EXPECT_EQ(next, routing.size());
}

TEST_P(DecoderOf, Bf16IsNearF32) {
  const auto source = model(io::Dtype::kBf16);
  const auto batch = make_batch();
  const auto f32 = Decoder::load(source, ComputeDtype::kF32).loss(batch.tokens_BS, batch.target_BS, {}).token_loss;
  const auto bf16 = Decoder::load(source, ComputeDtype::kBf16).loss(batch.tokens_BS, batch.target_BS, {}).token_loss;
  EXPECT_NEAR(number(bf16), number(f32), 0.05);
}

TEST(DecoderLoad, NamesATensorThatIsNotFinite) {
  TempDir dir;
  auto source = families::open_model(tiny_model(dir / "m", "mixtral", {.sizes = kSizes}));
  const std::string bad = families::tensor_name(source.config, Role::kExpertUp, 1, 3);
  expect_error(ErrorCode::kNonFinite, {bad.c_str(), "element 7"}, [&] {
    Decoder(source.config, ComputeDtype::kF32, [&](const families::TensorSlot& slot, std::span<float> values) {
      std::fill(values.begin(), values.end(), 0.1f);
      if (slot.name == bad) values[7] = std::numeric_limits<float>::quiet_NaN();
    });
  });
}

TEST(DecoderLoad, RefusesWhatItCannotCompute) {
  TempDir dir;
  const auto source = families::open_model(
      tiny_model(dir / "m", "mixtral", {.sizes = kSizes, .config = Json::object({{"hidden_act", Json("relu")}})}));
  expect_error(ErrorCode::kUnsupported, {"activation 'relu'"},
               [&] { (void)Decoder::load(source, ComputeDtype::kF32); });
}

TEST(DecoderForward, NamesATokenOutsideTheVocabulary) {
  TempDir dir;
  const auto decoder =
      Decoder::load(families::open_model(tiny_model(dir / "m", "qwen3_moe", {.sizes = kSizes})), ComputeDtype::kF32);
  auto tokens = make_batch().tokens_BS;
  tokens[0][4] = 61;
  expect_error(ErrorCode::kFormat, {"token id 61 at position 4"}, [&] { (void)decoder.logits(tokens, {}); });
}

TEST(DecoderSelectionBias, MovesTheChoiceOfExperts) {
  TempDir dir;
  auto decoder = Decoder::load(families::open_model(tiny_model(dir / "m", "glm4_moe", {.sizes = kSizes, .std = 0.2})),
                               ComputeDtype::kF32);
  ASSERT_FALSE(decoder.selection_bias().empty());
  auto& [layer, bias] = *decoder.selection_bias().begin();
  EXPECT_EQ(bias.scalar_type(), at::kFloat);
  bias[4].fill_(10.0);
  const auto batch = make_batch();
  const auto routing = decoder.loss(batch.tokens_BS, batch.target_BS, {}).routing;
  EXPECT_EQ(routing[0].count_E[4].item<int64_t>(), batch.tokens_BS.numel());
}

// transformers multiplies by the f32 1 + w, and embeds with a square root in the model's dtype.
TEST(DecoderInBf16, TakesCentredNormsInF32AndTheRootInBf16) {
  TempDir dir;
  const auto decoder =
      Decoder::load(families::open_model(tiny_model(dir / "m", "gemma", {.sizes = kSizes})), ComputeDtype::kBf16);
  const auto& norm = find_parameter(decoder.parameters(), Role::kFinalNorm);
  {
    const at::NoGradGuard no_grad;
    at::Tensor(norm.value).fill_(0.003);
  }
  const auto weight = detail::weight_of(norm);
  EXPECT_EQ(weight.scalar_type(), at::kFloat);
  EXPECT_FLOAT_EQ(weight[0].item<float>(), 1.0f + norm.value[0].to(at::kFloat).item<float>());
  EXPECT_NE(weight[0].item<float>(), 1.0f);

  auto config = decoder.config();
  config.embedding_multiplier = std::sqrt(3072.0);  // 55.43, in bf16 55.5
  const auto& table = find_parameter(decoder.parameters(), Role::kEmbedding).value;
  const auto found = detail::embed(config, table, make_batch().tokens_BS);
  EXPECT_TRUE(at::equal(
      found, (table.to(at::kFloat) * 55.5).to(at::kBFloat16).index_select(0, make_batch().tokens_BS.view({-1}))));
}

TEST(ParameterDecays, MatricesDoAndNormsAndBiasesDoNot) {
  TempDir dir;
  const auto decoder =
      Decoder::load(families::open_model(tiny_model(dir / "m", "qwen2_moe", {.sizes = kSizes})), ComputeDtype::kBf16);
  const auto& all = decoder.parameters();
  EXPECT_TRUE(find_parameter(all, Role::kEmbedding).decays());
  EXPECT_TRUE(find_parameter(all, Role::kExpertGate, 0).decays());
  EXPECT_TRUE(find_parameter(all, Role::kRouter, 0).decays());
  EXPECT_FALSE(find_parameter(all, Role::kFinalNorm).decays());
  EXPECT_FALSE(find_parameter(all, Role::kQueryBias, 0).decays());
  EXPECT_EQ(find_parameter(all, Role::kExpertGate, 0).value.scalar_type(), at::kBFloat16);
  EXPECT_EQ(find_parameter(all, Role::kExpertGate, 0).master.scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace coppice::nn
