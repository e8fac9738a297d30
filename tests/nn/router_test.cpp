#include "coppice/nn/router.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/log.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "coppice/kernels/routing.h"
#include "tests/testing/errors.h"

namespace coppice::nn {
namespace {

using families::GateFunction;
using families::Routing;

std::vector<int64_t> row(const at::Tensor& index_TK, int64_t token) {
  const auto r = index_TK[token].contiguous();
  return {r.const_data_ptr<int64_t>(), r.const_data_ptr<int64_t>() + r.numel()};
}

at::Tensor logits_of(const std::vector<float>& values) {
  return at::tensor(values).view({1, static_cast<int64_t>(values.size())});
}

constexpr GateFunction kGates[] = {GateFunction::kSoftmaxTopK, GateFunction::kTopKSoftmax, GateFunction::kSigmoidTopK};

TEST(RouterChoice, BreaksTiesToTheLowerExpert) {
  for (const auto gate : kGates) {
    const Routing routing{.gate = gate};
    EXPECT_EQ(row(route(logits_of({1, 2, 2, 1, 2, 0}), {}, routing, 4).index_TK, 0),
              (std::vector<int64_t>{1, 2, 4, 0}));
    EXPECT_EQ(row(route(at::zeros({1, 9}), {}, routing, 3).index_TK, 0), (std::vector<int64_t>{0, 1, 2}));
  }
}

TEST(RouterChoice, IsTheStableSortOfTheScores) {
  const auto logits = (at::randn({200, 13}) * 2).round() / 2;  // many ties
  for (const int64_t k : {1, 2, 5, 13}) {
    const auto routed = route(logits, {}, {.gate = GateFunction::kTopKSoftmax}, k);
    const auto* const score = logits.const_data_ptr<float>();
    for (int64_t t = 0; t < 200; ++t) {
      std::vector<int64_t> order(13);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return score[t * 13 + a] > score[t * 13 + b]; });
      order.resize(k);
      ASSERT_EQ(row(routed.index_TK, t), order);
    }
  }
}

TEST(RouterChoice, SelectionBiasChangesTheChoiceAndNotTheGate) {
  const auto logits = logits_of({2, 1, 0});
  const auto bias = at::tensor(std::vector<float>{0, 0, 1});
  const auto routed = route(logits, bias, {.gate = GateFunction::kSigmoidTopK, .has_selection_bias = true}, 2);
  EXPECT_EQ(row(routed.index_TK, 0), (std::vector<int64_t>{2, 0}));
  EXPECT_FLOAT_EQ(routed.gate_TK[0][0].item<float>(), 0.5f);
}

// Groups {0,1,2} and {3,4,5}: the first has the best expert, the second the better two.
TEST(RouterChoice, TakesTheGroupWithTheBestTwo) {
  const auto logits = logits_of({3, -3, -3, 2, 2, -3});
  const Routing routing{.gate = GateFunction::kSigmoidTopK, .num_groups = 2, .top_groups = 1};
  EXPECT_EQ(row(route(logits, {}, routing, 3).index_TK, 0), (std::vector<int64_t>{3, 4, 5}));
  EXPECT_EQ(row(route(at::zeros({1, 6}), {}, routing, 2).index_TK, 0), (std::vector<int64_t>{0, 1}));  // ties
}

TEST(RouterChoice, NegativeBiasedScoresOfKeptGroupsBeatThoseLeftOut) {
  const auto bias = at::tensor(std::vector<float>{-5, -5, -5, -5});
  const Routing routing{
      .gate = GateFunction::kSigmoidTopK, .num_groups = 2, .top_groups = 1, .has_selection_bias = true};
  EXPECT_EQ(row(route(logits_of({0, 0, 1, 1}), bias, routing, 2).index_TK, 0), (std::vector<int64_t>{2, 3}));
}

TEST(RouterGates, FollowEachFamilysFormula) {
  const auto logits = at::randn({6, 8});
  const auto plain = route(logits, {}, {.gate = GateFunction::kSoftmaxTopK}, 3);
  const auto scaled =
      route(logits, {}, {.gate = GateFunction::kSoftmaxTopK, .renormalise = true, .routed_scaling = 2.5}, 3);
  const auto late = route(logits, {}, {.gate = GateFunction::kTopKSoftmax}, 3);
  const auto best = at::softmax(logits, -1).gather(1, plain.index_TK);
  EXPECT_TRUE(plain.gate_TK.allclose(best));
  EXPECT_TRUE(scaled.gate_TK.allclose(2.5 * best / best.sum(1, true)));
  EXPECT_TRUE(
      late.gate_TK.allclose(best / best.sum(1, true)));  // softmax of the chosen is the renormalised softmax of all
  const auto sigmoid = route(logits, {}, {.gate = GateFunction::kSigmoidTopK}, 3);
  EXPECT_TRUE(sigmoid.gate_TK.allclose(at::sigmoid(logits).gather(1, sigmoid.index_TK)));
}

TEST(RouterGates, HaveTheGradientsOfFiniteDifferences) {
  at::manual_seed(4);
  const auto weight = at::randn({5, 2});
  for (const auto gate : kGates) {
    const Routing routing{.gate = gate,
                          .renormalise = gate != GateFunction::kTopKSoftmax,
                          .renormalise_epsilon = 1e-20,
                          .routed_scaling = 1.5};
    const auto loss = [&](const at::Tensor& z) { return (route(z, {}, routing, 2).gate_TK * weight).sum(); };
    // Logits half apart in random order, so that no step changes the choice.
    const auto logits = at::rand({5, 7}).argsort(int64_t{1}).to(at::kFloat) / 2,
               way = at::randn({5, 7}).clamp(-2, 2) * 1e-2;
    const auto leaf = logits.clone().set_requires_grad(true);
    const auto gradient = torch::autograd::grad({loss(leaf)}, {leaf})[0];
    const double slope = (gradient * way).sum().item<double>();
    const double measured = (loss(logits + way) - loss(logits - way)).item<double>() / 2;
    EXPECT_NEAR(measured, slope, 1e-3 * way.norm().item<double>());
  }
}

constexpr BalanceForm kForms[] = {BalanceForm::kPerLayer, BalanceForm::kTransformers};

LayerBalance balance_of(const at::Tensor& logits_TE, GateFunction gate, int64_t top_k, BalanceForm form) {
  const auto routed = route(logits_TE, {}, {.gate = gate}, top_k);
  return {balancing_distribution(routed, gate, form).sum(0),
          kernels::expert_counts(routed.index_TK, logits_TE.size(1))};
}

// Of one layer whose token t has its largest logit at `best[t]`, `height` above the others.
double loss_of(const std::vector<int64_t>& best, float height, GateFunction gate, float shift = 0) {
  const auto tokens = static_cast<int64_t>(best.size());
  auto logits = at::zeros({tokens, 4});
  for (int64_t t = 0; t < tokens; ++t) logits[t][best[static_cast<size_t>(t)]] = height;
  const std::vector<LayerBalance> layers{balance_of(logits + shift, gate, 1, BalanceForm::kPerLayer)};
  return balancing_loss(layers, tokens, 1, BalanceForm::kPerLayer).item<double>();
}

TEST(BalancingDistribution, SumsToOneForEveryTokenInEveryClass) {
  const auto logits = at::randn({50, 6}) * 3 - 2, bias = at::randn({6});
  for (const auto gate : kGates) {
    for (const auto form : kForms) {
      for (const bool renormalise : {false, true}) {
        const Routing routing{.gate = gate,
                              .renormalise = renormalise,
                              .num_groups = 2,
                              .top_groups = 1,
                              .routed_scaling = 2.5,
                              .has_selection_bias = true};
        const auto p_TE = balancing_distribution(route(logits, bias, routing, 2), gate, form);
        EXPECT_LT((p_TE.sum(1) - 1).abs().max().item<float>(), 1e-6f);
        EXPECT_GE(p_TE.min().item<float>(), 0.0f);
      }
    }
  }
}

TEST(BalancingDistribution, OfSigmoidsIsEachScoreByTheSumOfAll) {
  const auto logits = logits_of({0, 2, -1});
  const auto routed = route(logits, {}, {.gate = GateFunction::kSigmoidTopK}, 1);
  const auto score = at::sigmoid(logits);
  const auto found = [&](BalanceForm form) { return balancing_distribution(routed, GateFunction::kSigmoidTopK, form); };
  EXPECT_TRUE(found(BalanceForm::kPerLayer).allclose(score / score.sum(1, true)));
  EXPECT_TRUE(found(BalanceForm::kTransformers).allclose(at::softmax(logits, -1)));
}

TEST(BalancingLoss, IsTopKForEvenLoadsAndLargerForUnevenOnes) {
  for (const auto gate : kGates) {
    EXPECT_NEAR(loss_of({0, 1, 2, 3, 0, 1, 2, 3}, 3, gate), 1.0, 1e-5);
    EXPECT_GT(loss_of({2, 2, 2, 2, 2, 2, 2, 2}, 3, gate), 1.2);
    EXPECT_GT(loss_of({2, 2, 2, 2, 0, 1, 2, 3}, 3, gate), 1.05);
  }
}

// Raw sigmoids have their least loss, 0, where all scores are 0 and loads are as uneven as they like.
TEST(BalancingLoss, DoesNotFallWithTheScoresOfSigmoids) {
  const std::vector<int64_t> even{0, 1, 2, 3}, uneven{2, 2, 2, 2};
  for (const float shift : {-8.0f, -4.0f, 0.0f}) {
    EXPECT_NEAR(loss_of(even, 3, GateFunction::kSigmoidTopK, shift), 1.0, 1e-5) << shift;
    EXPECT_GT(loss_of(uneven, 3, GateFunction::kSigmoidTopK, shift), 1.2) << shift;
  }
}

TEST(BalancingLoss, PullsTheLogitsOfCrowdedExpertsDownAndOfEmptyOnesUp) {
  for (const auto gate : kGates) {
    for (const auto form : kForms) {
      auto logits = at::zeros({8, 4});
      logits.select(1, 2).fill_(1.0);
      const auto leaf = logits.set_requires_grad(true);
      const std::vector<LayerBalance> layers{balance_of(leaf, gate, 1, form)};
      balancing_loss(layers, 8, 1, form).backward();
      const auto pull_E = leaf.grad().sum(0);
      for (int64_t e = 0; e < 4; ++e) EXPECT_EQ(pull_E[e].item<float>() > 0, e == 2) << "expert " << e;
    }
  }
}

TEST(BalancingLoss, HasTheGradientsOfFiniteDifferences) {
  at::manual_seed(6);
  for (const auto gate : kGates) {
    for (const auto form : kForms) {
      const auto logits = at::randn({2, 9, 5}).to(at::kDouble), way = at::randn({2, 9, 5}).to(at::kDouble) * 1e-2;
      const auto count = at::randn({2, 5}).mul(4).abs().to(at::kLong) + 1;  // no gradient goes through the loads
      const auto loss = [&](const at::Tensor& z) {
        std::vector<LayerBalance> layers;
        for (int64_t layer = 0; layer < 2; ++layer) {
          const auto routed = route(z[layer].to(at::kFloat), {}, {.gate = gate}, 2);
          layers.push_back({balancing_distribution(routed, gate, form).sum(0), count[layer]});
        }
        return balancing_loss(layers, 9, 2, form);
      };
      const auto leaf = logits.clone().set_requires_grad(true);
      const auto gradient = torch::autograd::grad({loss(leaf)}, {leaf})[0];
      const double slope = (gradient * way).sum().item<double>();
      const double measured = (loss(logits + way) - loss(logits - way)).item<double>() / 2;
      EXPECT_NEAR(measured, slope, 2e-2 * std::abs(slope) + 2e-6);
    }
  }
}

// Two layers, each sending every token to an expert of its own.
TEST(BalancingLoss, SeesLayersThatAreUnevenInDifferentWays) {
  for (const auto gate : kGates) {
    std::vector<LayerBalance> layers;
    for (const int64_t favourite : {0, 1}) {
      auto logits = at::zeros({8, 2});
      logits.select(1, favourite).fill_(4.0);
      layers.push_back(balance_of(logits, gate, 1, BalanceForm::kPerLayer));
    }
    EXPECT_GT(balancing_loss(layers, 8, 1, BalanceForm::kPerLayer).item<double>(), 1.3);
    EXPECT_NEAR(balancing_loss(layers, 8, 1, BalanceForm::kTransformers).item<double>(), 1.0, 1e-5);
  }
}

TEST(BalancingLoss, IsTheMeanOverPartsOfABatchThatTakeTheLoadsOfTheWhole) {
  const auto logits = at::randn({12, 5});
  for (const auto gate : kGates) {
    const auto whole = balance_of(logits, gate, 2, BalanceForm::kPerLayer);
    const auto loss = [&](const at::Tensor& part, int64_t tokens) {
      const std::vector<LayerBalance> layers{
          {balance_of(part, gate, 2, BalanceForm::kPerLayer).score_sum_N, whole.count_N}};
      return balancing_loss(layers, tokens, 2, BalanceForm::kPerLayer).item<double>();
    };
    EXPECT_NEAR(loss(logits, 12), (loss(logits.narrow(0, 0, 9), 9) * 9 + loss(logits.narrow(0, 9, 3), 3) * 3) / 12,
                1e-6);
  }
}

TEST(BalancingLoss, TakesNothingThatIsNoDistribution) {
  const auto scores = at::sigmoid(at::randn({6, 4}));
  const std::vector<LayerBalance> layers{{scores.sum(0), at::tensor(std::vector<int64_t>{3, 3, 3, 3})}};
  testing::expect_error(ErrorCode::kInternal, {"probabilities of 6 tokens"},
                        [&] { (void)balancing_loss(layers, 6, 2, BalanceForm::kPerLayer); });
}

TEST(ZLoss, IsTheMeanSquareOfLogSumExp) {
  const auto logits = at::randn({9, 5});
  EXPECT_NEAR(z_loss(logits).item<double>(), at::log(logits.exp().sum(1)).square().mean().item<double>(), 1e-5);
}

}  // namespace
}  // namespace coppice::nn
