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
#include <numeric>
#include <vector>

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

TEST(BalancingLoss, IsTopKForAnEvenRouterAndLargerForAnUnevenOne) {
  // Eight tokens, each expert chosen by two tokens as its first choice; scores near one-hot.
  auto logits = at::zeros({8, 4});
  for (int64_t t = 0; t < 8; ++t) logits[t][t % 4] = 1e-3;
  const Routing routing{.gate = GateFunction::kSoftmaxTopK};
  EXPECT_NEAR(balancing_loss(route(logits, {}, routing, 1), 4).item<double>(), 1.0, 1e-5);
  auto uneven = at::zeros({8, 4});
  uneven.select(1, 2).fill_(5.0);
  EXPECT_GT(balancing_loss(route(uneven, {}, routing, 1), 4).item<double>(), 3.5);
}

TEST(ZLoss, IsTheMeanSquareOfLogSumExp) {
  const auto logits = at::randn({9, 5});
  EXPECT_NEAR(z_loss(logits).item<double>(), at::log(logits.exp().sum(1)).square().mean().item<double>(), 1e-5);
}

}  // namespace
}  // namespace coppice::nn
