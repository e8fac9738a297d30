// The decoder on a device whose memory the host cannot read, beside the decoder on the CPU: the operators there are
// libtorch's, so results agree within rounding.

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/nn/decoder.h"
#include "coppice/nn/fitted_decoder.h"
#include "coppice/nn/host.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/guarded_device.h"
#include "tests/nn/tiny_decoders.h"
#include "tests/testing/temp_dir.h"

namespace coppice::nn {
namespace {

using coppice::testing::TempDir;
using coppice::testing::tiny_model;
using guarded::kCpu;
using guarded::kGuarded;

constexpr double kClose = 1e-5;  // relative to the largest element

class DecoderOn : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);  // the models are too small to share out
    at::manual_seed(2);
    tokens_BS = at::randint(0, kSizes.vocab_size, {3, 16}, at::kLong);
    target_BS = at::randint(0, kSizes.vocab_size, {3, 16}, at::kLong);
    target_BS[1].narrow(0, 3, 5).fill_(-1);
  }

  families::Model model() {
    return families::open_model(tiny_model(dir_ / "model", GetParam(), {.sizes = sizes_of(GetParam()), .std = 0.2}));
  }

  at::Tensor tokens_BS, target_BS;

 private:
  TempDir dir_;
};

INSTANTIATE_TEST_SUITE_P(Families, DecoderOn,
                         ::testing::Values("qwen3_moe", "glm4_moe", "deepseek_v3", "gpt_oss", "granitemoeshared",
                                           "gemma", "phi3"),
                         [](const auto& param_info) { return std::string(param_info.param); });

struct Learned {
  at::Tensor loss;
  LossOutput out;
  std::vector<at::Tensor> gradients;  // on the CPU
};

Learned learn(Decoder& decoder, const at::Tensor& tokens_BS, const at::Tensor& target_BS,
              const ForwardOptions& options) {
  for (auto& p : decoder.parameters()) p.value.mutable_grad() = at::Tensor();
  Learned learned{.out = decoder.loss(tokens_BS, target_BS, options)};
  learned.out.loss.backward();
  learned.loss = learned.out.loss.detach().cpu();
  for (auto& p : decoder.parameters()) learned.gradients.push_back(p.value.grad().cpu());
  return learned;
}

void expect_close(const at::Tensor& found, const at::Tensor& wanted, double tolerance, const std::string& what) {
  ASSERT_EQ(found.sizes(), wanted.sizes()) << what;
  const double error = (found - wanted).abs().max().item<double>(), largest = wanted.abs().max().item<double>();
  EXPECT_LE(error, tolerance * largest) << what;
}

void expect_same_learning(const families::Model& model, const at::Tensor& tokens_BS, const at::Tensor& target_BS,
                          const ForwardOptions& options, double tolerance) {
  auto here = Decoder::load(model, ComputeDtype::kF32), there = Decoder::load(model, ComputeDtype::kF32, kGuarded);
  EXPECT_EQ(there.device(), kGuarded);
  const auto wanted = learn(here, tokens_BS, target_BS, options), found = learn(there, tokens_BS, target_BS, options);
  EXPECT_EQ(found.out.loss.device(), kGuarded);
  expect_close(found.loss, wanted.loss, tolerance, "loss");
  for (size_t i = 0; i < wanted.gradients.size(); ++i) {
    expect_close(found.gradients[i], wanted.gradients[i], tolerance, here.parameters()[i].slices.front().slot.name);
  }
  ASSERT_EQ(found.out.routing.size(), wanted.out.routing.size());
  for (size_t i = 0; i < wanted.out.routing.size(); ++i) {
    const auto &f = found.out.routing[i], &w = wanted.out.routing[i];
    EXPECT_TRUE(at::equal(f.count_E.cpu(), w.count_E)) << i;
    expect_close(f.gate_mass_E.cpu(), w.gate_mass_E, tolerance, "gate mass");
    if (w.output_sq.defined()) expect_close(f.output_sq.cpu(), w.output_sq, tolerance, "output_sq");
    if (w.pair_sq_TK.defined()) expect_close(f.pair_sq_TK.cpu(), w.pair_sq_TK, tolerance, "pair_sq");
  }
}

TEST_P(DecoderOn, LearnsTheSameThere) {
  const auto source = model();
  ForwardOptions options{.with_output_sq = true};
  if (source.config.is_moe()) options.aux_loss_coef = options.z_loss_coef = 0.1;
  expect_same_learning(source, tokens_BS, target_BS, options, kClose);
}

// Sums of rounded values, and a token that is nearly even between two experts may choose the other.
TEST_P(DecoderOn, LearnsNearlyTheSameThereInBf16) {
  const auto source = model();
  auto here = Decoder::load(source, ComputeDtype::kBf16), there = Decoder::load(source, ComputeDtype::kBf16, kGuarded);
  const auto wanted = learn(here, tokens_BS, target_BS, {}), found = learn(there, tokens_BS, target_BS, {});
  expect_close(found.loss, wanted.loss, 1e-2, "loss");
  for (size_t i = 0; i < wanted.gradients.size(); ++i) {
    const auto f = found.gradients[i].to(at::kDouble), w = wanted.gradients[i].to(at::kDouble);
    EXPECT_EQ(found.gradients[i].scalar_type(), at::kBFloat16);
    EXPECT_GT(number((f * w).sum() / (f.square().sum() * w.square().sum()).sqrt()), 0.95)
        << here.parameters()[i].slices.front().slot.name;
  }
}

TEST_P(DecoderOn, KeepsDocumentsApartThere) {
  const auto start_BS = at::arange(16, at::kLong).floor_divide(5).mul(5).expand({3, 16}).contiguous();
  expect_same_learning(model(), tokens_BS, target_BS, {.document_start_BS = start_BS}, kClose);
}

TEST_P(DecoderOn, RecomputesTheSameBitsThere) {
  auto there = Decoder::load(model(), ComputeDtype::kF32, kGuarded);
  const auto kept = learn(there, tokens_BS, target_BS, {}),
             again = learn(there, tokens_BS, target_BS, {.recompute = true});
  EXPECT_TRUE(at::equal(kept.loss, again.loss));
  for (size_t i = 0; i < kept.gradients.size(); ++i) EXPECT_TRUE(at::equal(kept.gradients[i], again.gradients[i]));
}

TEST_P(DecoderOn, MakesTheHostWaitForNothingButTheMoeLayer) {
  const auto source = model();
  auto there = Decoder::load(source, ComputeDtype::kF32, kGuarded);
  ForwardOptions options{.keep_routing = true};
  if (source.config.is_moe()) options.aux_loss_coef = options.z_loss_coef = 0.1;
  const long before = guarded::counters().copies_to_host;
  there.loss(tokens_BS, target_BS, options).loss.backward();
  // In f32 once, in the forward pass (kernels/moe.h).
  EXPECT_EQ(guarded::counters().copies_to_host - before, source.config.is_moe() ? source.config.num_moe_layers() : 0);
}

TEST_P(DecoderOn, RoutesByLineageThere) {
  const auto source = model();
  if (!source.config.is_moe() || source.config.routing.num_groups > 1) GTEST_SKIP() << "no experts, or in groups";
  std::map<int64_t, std::vector<uint32_t>> parents;
  for (int64_t layer = 0; layer < source.config.num_layers; ++layer) parents[layer] = {0, 0, 1, 1, 1, 2};
  const auto lineage = std::make_shared<LineageRouting>(std::make_shared<Lineage>(parents, 3), 0.5);
  expect_same_learning(source, tokens_BS, target_BS, {.aux_loss_coef = 0.1, .lineage = lineage, .first_token = 1000},
                       kClose);
}

TEST_P(DecoderOn, GivesTheSameLogitsAndLossesThere) {
  const auto source = model();
  const auto here = Decoder::load(source, ComputeDtype::kF32),
             there = Decoder::load(source, ComputeDtype::kF32, kGuarded);
  const auto logits_BSV = there.logits(tokens_BS, {});
  EXPECT_EQ(logits_BSV.device(), kGuarded);
  expect_close(logits_BSV.cpu(), here.logits(tokens_BS, {}), kClose, "logits");
  at::Tensor counts_B, wanted_counts_B;
  const auto found_B = there.sequence_loss(tokens_BS, target_BS, {}, counts_B);
  expect_close(found_B.cpu(), here.sequence_loss(tokens_BS, target_BS, {}, wanted_counts_B), kClose, "losses");
  EXPECT_TRUE(at::equal(counts_B, wanted_counts_B)) << "on the host";
}

TEST_P(DecoderOn, HasTheCheckpointsTensorsThere) {
  const auto source = model();
  const auto there = Decoder::load(source, ComputeDtype::kBf16, kGuarded);
  there.visit([&](const families::TensorSlot& slot, std::span<const float> values) {
    EXPECT_EQ(std::vector<float>(values.begin(), values.end()), source.checkpoint.read_f32(slot.name)) << slot.name;
  });
}

TEST_P(DecoderOn, FitsIntoMemoryLayerByLayerThere) {
  const auto source = model();
  const auto whole = Decoder::load(source, ComputeDtype::kF32, kGuarded);
  const FittedDecoder small(source, ComputeDtype::kF32, 1, kGuarded);
  EXPECT_FALSE(small.is_whole());
  at::Tensor counts_B;
  std::vector<LayerRouting> wanted, found;
  const auto wanted_B = whole.sequence_loss(tokens_BS, target_BS, {}, counts_B, &wanted);
  const auto found_B = small.sequence_loss(tokens_BS, target_BS, {}, counts_B, &found);
  EXPECT_EQ(found_B.device(), kGuarded);
  EXPECT_TRUE(at::equal(found_B.cpu(), wanted_B.cpu()));
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::equal(found[i].count_E.cpu(), wanted[i].count_E.cpu()));
}

}  // namespace
}  // namespace coppice::nn
