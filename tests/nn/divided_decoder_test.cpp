// A decoder over ranks learns what it learns on one.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/dist/world.h"
#include "coppice/nn/decoder.h"
#include "coppice/nn/host.h"
#include "coppice/nn/layered_decoder.h"
#include "tests/dist/thread_ranks.h"
#include "tests/nn/tiny_decoders.h"
#include "tests/testing/temp_dir.h"

namespace coppice::nn {
namespace {

using coppice::testing::run_ranks;
using coppice::testing::TempDir;
using coppice::testing::tiny_model;

constexpr int64_t kSequences = 4, kPositions = 12;  // of all ranks together

struct Batch {
  at::Tensor tokens_BS, target_BS;
};
// Made once: the generator is one for all ranks' threads.
const Batch& whole_batch() {
  static const Batch batch = [] {
    at::manual_seed(5);
    const auto ids = [] { return at::randint(0, kSizes.vocab_size, {kSequences, kPositions}, at::kLong); };
    return Batch{ids(), ids()};
  }();
  return batch;
}

struct Learned {
  double loss = 0, token_loss = 0, aux_loss = 0, z_loss = 0;
  std::vector<at::Tensor> gradients;  // f64
  std::vector<LayerRouting> routing;
};

Learned learn(Decoder& decoder, const Batch& batch, const ForwardOptions& options, double share = 1) {
  for (auto& p : decoder.parameters()) p.value.mutable_grad() = at::Tensor();
  const auto out = decoder.loss(batch.tokens_BS, batch.target_BS, options);
  (out.loss * share).backward();
  const auto value = [](const at::Tensor& t) { return t.defined() ? number(t) : 0; };
  Learned learned{value(out.loss), value(out.token_loss), value(out.aux_loss), value(out.z_loss), {}, out.routing};
  for (auto& p : decoder.parameters()) learned.gradients.push_back(p.value.grad().to(at::kDouble));
  return learned;
}

// What rank `world.rank()` has of the gradients of the mean loss over all ranks, and that loss.
Learned learn_together(Decoder& decoder, dist::World& world, ForwardOptions options) {
  const int64_t mine = kSequences / world.size(), first = world.rank() * mine;
  const auto batch = whole_batch();
  options.first_token = static_cast<uint64_t>(first * kPositions);
  if (options.document_start_BS.defined()) options.document_start_BS = options.document_start_BS.narrow(0, first, mine);
  auto learned =
      learn(decoder,
            {batch.tokens_BS.narrow(0, first, mine).contiguous(), batch.target_BS.narrow(0, first, mine).contiguous()},
            options, 1.0 / static_cast<double>(world.size()));
  for (double* loss : {&learned.loss, &learned.token_loss, &learned.aux_loss, &learned.z_loss}) {
    const auto sum = at::full({1}, *loss, at::kDouble);
    world.all().all_reduce(sum).wait();
    *loss = number(sum) / static_cast<double>(world.size());
  }
  for (size_t i = 0; i < learned.gradients.size(); ++i) {
    auto& group = decoder.parameters()[i].is_experts() ? world.same_experts() : world.all();
    group.all_reduce(learned.gradients[i]).wait();
  }
  return learned;
}

at::Tensor of_own(const Parameter& own, const at::Tensor& all) {
  return own.is_experts() ? all.index_select(0, from_host<int64_t>(own.experts, {std::ssize(own.experts)}, at::kCPU))
                          : all;
}

double relative_error(const at::Tensor& found, const at::Tensor& wanted) {
  const double largest = wanted.abs().max().item<double>();
  return largest == 0 ? found.abs().max().item<double>() : (found - wanted).abs().max().item<double>() / largest;
}

void expect_losses(const Learned& found, const Learned& wanted, double tolerance) {
  EXPECT_NEAR(found.loss, wanted.loss, tolerance * wanted.loss);
  EXPECT_NEAR(found.token_loss, wanted.token_loss, tolerance * wanted.token_loss);
  EXPECT_NEAR(found.aux_loss, wanted.aux_loss, tolerance * wanted.aux_loss);
  EXPECT_NEAR(found.z_loss, wanted.z_loss, tolerance * wanted.z_loss);
}

struct Ranks {
  int64_t size, expert_parallel;
};

class DividedDecoderOf : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override { at::set_num_threads(1); }
  families::Model model() {
    return families::open_model(tiny_model(dir_ / cat("m", made_++), GetParam(),
                                           {.sizes = sizes_of(GetParam()), .dtype = io::Dtype::kF32, .std = 0.2}));
  }

  // The same losses and gradients as those of one rank, on every rank.
  void expect_same(const ForwardOptions& options, const std::vector<uint32_t>& parents = {},
                   std::vector<Ranks> all = {{2, 2}, {4, 4}, {4, 2}, {2, 1}}) {
    const auto source = model();
    auto whole = Decoder::load(source, ComputeDtype::kF32);
    move_biases(whole);
    const auto wanted = learn(whole, whole_batch(), options);
    std::map<int64_t, std::vector<uint32_t>> lineages;
    if (!parents.empty()) {
      for (int64_t layer = 0; layer < source.config.num_layers; ++layer) lineages[layer] = parents;
    }
    for (const auto& [size, expert_parallel] : all) {
      SCOPED_TRACE(cat(size, " ranks, expert groups of ", expert_parallel));
      run_ranks(size,
                [&](dist::World& world) {
                  at::set_num_threads(1);
                  auto decoder = Decoder::load(source, ComputeDtype::kF32, at::kCPU,
                                               divide(testing::borrowed(world), source.config, lineages));
                  move_biases(decoder);
                  const auto found = learn_together(decoder, world, options);
                  expect_losses(found, wanted, 1e-6);
                  for (size_t i = 0; i < found.gradients.size(); ++i) {
                    const auto& p = decoder.parameters()[i];
                    EXPECT_LE(relative_error(found.gradients[i], of_own(p, wanted.gradients[i])), kTolerance)
                        << p.slices.front().slot.name;
                  }
                },
                {.expert_parallel = expert_parallel, .timeout = std::chrono::seconds(60)});
    }
  }

 private:
  static constexpr double kTolerance = 3e-6;  // relative to a parameter's largest; sums over tokens in another order

  // So that the choice is not that of the scores alone.
  static void move_biases(Decoder& decoder) {
    for (auto& [layer, bias_E] : decoder.selection_bias()) {
      bias_E[layer % bias_E.size(0)] += 0.3;
      bias_E[0] -= 0.2;
    }
  }

  TempDir dir_;
  int made_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Families, DividedDecoderOf,
                         ::testing::Values("mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "glm4_moe", "gpt_oss"),
                         [](const auto& param_info) { return std::string(param_info.param); });

TEST_P(DividedDecoderOf, LearnsWhatOneRankLearns) { expect_same({}); }

TEST_P(DividedDecoderOf, BalancesByTheCountsOfAllRanks) {
  expect_same({.aux_loss_coef = 0.1, .z_loss_coef = 0.01});
  std::map<int64_t, at::Tensor> elsewhere;
  const auto config = model().config;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) elsewhere[layer] = at::full({6}, 3.5, at::kDouble);
  expect_same({.aux_loss_coef = 0.1, .balance_form = BalanceForm::kTransformers, .balance_count = elsewhere}, {},
              {{4, 2}});
}

TEST_P(DividedDecoderOf, LearnsTheSameWithRecomputation) {
  expect_same({.recompute = true, .aux_loss_coef = 0.1, .z_loss_coef = 0.01}, {}, {{2, 2}, {4, 2}});
}

TEST_P(DividedDecoderOf, IsNearInBf16) {
  const auto source = model();
  auto exact = Decoder::load(source, ComputeDtype::kF32), one = Decoder::load(source, ComputeDtype::kBf16);
  const auto wanted = learn(exact, whole_batch(), {}), rounded = learn(one, whole_batch(), {});
  run_ranks(4,
            [&](dist::World& world) {
              at::set_num_threads(1);
              auto decoder =
                  Decoder::load(source, ComputeDtype::kBf16, at::kCPU, divide(testing::borrowed(world), source.config));
              const auto found = learn_together(decoder, world, {});
              EXPECT_NEAR(found.loss, wanted.loss, 2 * std::abs(rounded.loss - wanted.loss) + 0.01);
              // The distance of all gradients from the exact ones is about that of one rank's.
              double distance = 0, distance_of_one = 0, size = 0;
              for (size_t i = 0; i < found.gradients.size(); ++i) {
                const auto& p = decoder.parameters()[i];
                const auto exact_part = of_own(p, wanted.gradients[i]);
                distance += (found.gradients[i] - exact_part).square().sum().item<double>();
                distance_of_one += (of_own(p, rounded.gradients[i]) - exact_part).square().sum().item<double>();
                size += exact_part.square().sum().item<double>();
              }
              EXPECT_LE(std::sqrt(distance), 1.5 * std::sqrt(distance_of_one) + 0.01 * std::sqrt(size));
            },
            {.expert_parallel = 4, .timeout = std::chrono::seconds(60)});
}

TEST_P(DividedDecoderOf, SaysOfItsOwnTokensWhatOneRankSaysOfAll) {
  const auto source = model();
  auto whole = Decoder::load(source, ComputeDtype::kF32);
  const ForwardOptions options{.with_output_sq = true};
  const auto wanted = learn(whole, whole_batch(), options);
  run_ranks(2,
            [&](dist::World& world) {
              at::set_num_threads(1);
              auto decoder =
                  Decoder::load(source, ComputeDtype::kF32, at::kCPU, divide(testing::borrowed(world), source.config));
              const auto found = learn_together(decoder, world, options);
              ASSERT_EQ(found.routing.size(), wanted.routing.size());
              for (size_t i = 0; i < found.routing.size(); ++i) {
                const LayerRouting &mine = found.routing[i], &all = wanted.routing[i];
                const int64_t tokens = mine.index_TK.size(0), first = world.rank() * tokens;
                EXPECT_TRUE(at::equal(mine.index_TK, all.index_TK.narrow(0, first, tokens)));
                const auto near = [](const at::Tensor& a, const at::Tensor& b) { return a.allclose(b, 1e-4, 1e-6); };
                EXPECT_TRUE(near(mine.gate_TK, all.gate_TK.narrow(0, first, tokens)));
                EXPECT_TRUE(near(mine.pair_sq_TK, all.pair_sq_TK.narrow(0, first, tokens)));
                for (const auto part : {&LayerRouting::count_E, &LayerRouting::gate_mass_E, &LayerRouting::output_sq}) {
                  const auto sum = (mine.*part).clone();
                  world.all().all_reduce(sum).wait();
                  EXPECT_TRUE(near(sum, all.*part));
                }
              }
            },
            {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

TEST_P(DividedDecoderOf, LoadedLayerByLayerItIsTheSameToTheBit) {
  const auto source = model();
  run_ranks(2,
            [&](dist::World& world) {
              at::set_num_threads(1);
              const at::NoGradGuard no_grad;
              const auto division = divide(testing::borrowed(world), source.config);
              const auto tokens_BS = whole_batch().tokens_BS.narrow(0, 2 * world.rank(), 2).contiguous();
              const auto wanted = Decoder::load(source, ComputeDtype::kF32, at::kCPU, division).logits(tokens_BS, {});
              const LayeredDecoder layered(source, ComputeDtype::kF32, at::kCPU, division);
              auto x_TD = layered.load_embedding().embed(tokens_BS);
              for (int64_t layer = 0; layer < source.config.num_layers; ++layer)
                x_TD = layered.load_layers(layer, layer + 1).run(x_TD, kPositions, {});
              EXPECT_TRUE(at::equal(layered.load_head().logits(x_TD).view(wanted.sizes()), wanted));
            },
            {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

using DividedPlainDecoderOf = DividedDecoderOf;
INSTANTIATE_TEST_SUITE_P(Families, DividedPlainDecoderOf, ::testing::Values("mixtral", "qwen3_moe", "gpt_oss"),
                         [](const auto& param_info) { return std::string(param_info.param); });

TEST_P(DividedPlainDecoderOf, RoutesByLineageWithSiblingsApart) {
  const std::vector<uint32_t> parents{0, 1, 2, 0, 1, 2};
  std::map<int64_t, std::vector<uint32_t>> lineages;
  for (int64_t layer = 0; layer < kSizes.num_layers; ++layer) lineages[layer] = parents;
  const auto lineage = std::make_shared<const Lineage>(lineages, 3);
  for (const double share : {1.0, 0.5}) {
    expect_same(
        {.aux_loss_coef = 0.1, .lineage = std::make_shared<const LineageRouting>(LineageRouting{lineage, share, 7})},
        parents, {{2, 2}, {4, 4}});
  }
}

// Ranks of one group with different numbers of sequences, and of documents.
TEST(DividedDecoder, TakesDifferentNumbersOfSequences) {
  TempDir dir;
  const auto source =
      families::open_model(tiny_model(dir / "m", "qwen3_moe", {.sizes = sizes_of("qwen3_moe"), .std = 0.2}));
  const auto whole = Decoder::load(source, ComputeDtype::kF32);
  const auto batch = whole_batch();
  run_ranks(3,
            [&](dist::World& world) {
              at::set_num_threads(1);
              const at::NoGradGuard no_grad;
              const auto decoder =
                  Decoder::load(source, ComputeDtype::kF32, at::kCPU, divide(testing::borrowed(world), source.config));
              const std::vector<int64_t> first{0, 1, 3};
              const int64_t begin = first[static_cast<size_t>(world.rank())], count = world.rank() == 1 ? 2 : 1;
              const auto tokens_BS = batch.tokens_BS.narrow(0, begin, count).contiguous();
              EXPECT_TRUE(decoder.logits(tokens_BS, {}).allclose(whole.logits(tokens_BS, {}), 1e-4, 1e-5));
            },
            {.expert_parallel = 3, .timeout = std::chrono::seconds(60)});
}

}  // namespace
}  // namespace coppice::nn
