#include "coppice/kernels/routing.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "coppice/base/error.h"
#include "coppice/kernels/routing_detail.h"
#include "tests/guarded/devices.h"
#include "tests/kernels/on_devices.h"

namespace coppice::kernels {
namespace {

class RoutingOn : public ::testing::TestWithParam<at::Device> {};
INSTANTIATE_TEST_SUITE_P(Devices, RoutingOn, guarded::both_devices(), guarded::device_name);

TEST_P(RoutingOn, ChoosesTheBestInFallingOrder) {
  const auto score_TN = at::tensor({0.1f, 0.4f, 0.2f, 0.3f, -1.0f, -2.0f, -0.5f, -3.0f}).view({2, 4});
  const auto index_TK = choose_top_k(score_TN.to(GetParam()), {.top_k = 2});
  EXPECT_EQ(index_TK.device(), GetParam());
  EXPECT_TRUE(at::equal(index_TK.to(at::kCPU), at::tensor({1, 3, 2, 0}, at::kLong).view({2, 2})));
}

// Scores of few values tie often. Of equal ones the lowest index goes first.
TEST_P(RoutingOn, ChoosesAsTheLoopsDo) {
  at::manual_seed(6);
  const auto score_TN = at::randint(0, 5, {700, 24}, at::kFloat);
  for (const TopK& choice :
       {TopK{.top_k = 1}, TopK{.top_k = 8}, TopK{.top_k = 24}, TopK{.top_k = 5, .num_groups = 4, .top_groups = 2},
        TopK{.top_k = 6, .num_groups = 6, .top_groups = 3, .best_two = true},
        TopK{.top_k = 2, .num_groups = 24, .top_groups = 2, .best_two = true}}) {
    const auto index_TK = choose_top_k(score_TN.to(GetParam()), choice).to(at::kCPU);
    EXPECT_TRUE(index_TK.is_contiguous());
    EXPECT_TRUE(at::equal(index_TK, cpu::choose_top_k(score_TN, choice)));
  }
}

TEST_P(RoutingOn, TakesTheGroupOfTheBestTwoOrOfTheBest) {
  const auto score_TN = at::tensor({0.9f, 0.0f, 0.6f, 0.5f}).view({1, 4}).to(GetParam());  // two groups
  const auto best = choose_top_k(score_TN, {.top_k = 2, .num_groups = 2, .top_groups = 1});
  const auto two = choose_top_k(score_TN, {.top_k = 2, .num_groups = 2, .top_groups = 1, .best_two = true});
  EXPECT_TRUE(at::equal(best.to(at::kCPU), at::tensor({0, 1}, at::kLong).view({1, 2})));
  EXPECT_TRUE(at::equal(two.to(at::kCPU), at::tensor({2, 3}, at::kLong).view({1, 2})));
}

TEST_P(RoutingOn, CountsPairs) {
  const auto index_TK = at::stack({at::arange(6) % 3, at::full({6}, 3, at::kLong)}, 1);
  const auto counts = expert_counts(index_TK.to(GetParam()), 5);
  EXPECT_EQ(counts.device(), GetParam());
  EXPECT_TRUE(at::equal(counts.to(at::kCPU), at::tensor({2, 2, 2, 6, 0}, at::kLong)));
}

// Added one after the other, so the order shows in the last bits.
TEST_P(RoutingOn, AddsGatesInTheOrderOfTokens) {
  const auto gate_TK = at::rand({3000, 2}), index_TK = at::randint(0, 7, {3000, 2}, at::kLong);
  double wanted[7] = {};
  for (int64_t i = 0; i < gate_TK.numel(); ++i) {
    wanted[index_TK.const_data_ptr<int64_t>()[i]] += gate_TK.const_data_ptr<float>()[i] / 2.5;
  }
  const auto mass_E = gate_mass(index_TK.to(GetParam()), gate_TK.to(GetParam()), 8, 2.5);
  EXPECT_EQ(mass_E.device(), GetParam());
  for (int64_t e = 0; e < 7; ++e) EXPECT_EQ(mass_E[e].item<double>(), wanted[e]) << e;
  EXPECT_EQ(mass_E[7].item<double>(), 0.0);
}

// In f64 libtorch's operators compute the gates and their gradients.
TEST(Gates, AreTheFormulaWithItsGradientsOnEveryDevice) {
  at::manual_seed(7);
  const auto value_TE = at::rand({700, 24});
  const auto index_TK = choose_top_k(value_TE, {.top_k = 5});
  for (const GateForm& form : {GateForm{}, GateForm{.scaling = 2.5}, GateForm{.renormalise = true, .epsilon = 1e-20},
                               GateForm{.renormalise = true, .epsilon = 0.1, .scaling = 1.5}, GateForm{.softmax = true},
                               GateForm{.softmax = true, .renormalise = true}}) {
    const auto op = [&](const auto& in) { return gates(in[0], index_TK.to(in[0].device()), form); };
    testing::expect_slopes(op, {value_TE});
    const auto wanted = testing::run_on(guarded::kCpu, op, {value_TE.to(at::kDouble)});
    const auto found = testing::run_on(guarded::kCpu, op, {value_TE});
    testing::expect_all_near(found, wanted, 2e-6);
    testing::expect_all_near(testing::run_on(guarded::kGuarded, op, {value_TE}), wanted, 2e-6);
    testing::expect_same_for_threads(op, {value_TE});
  }
}

TEST(Routing, RefusesAnExpertThatDoesNotExist) {
  const auto index_TK = at::full({4, 2}, 3, at::kLong), gate_TK = at::rand({4, 2});
  EXPECT_THROW((void)expert_counts(index_TK, 3), Error);
  EXPECT_THROW((void)gate_mass(index_TK, gate_TK, 3), Error);
  EXPECT_THROW((void)gates(at::rand({4, 3}), index_TK, {}), Error);
  EXPECT_THROW((void)expert_counts(index_TK.to(guarded::kGuarded), 3), c10::Error);
  EXPECT_THROW((void)gate_mass(index_TK.to(guarded::kGuarded), gate_TK.to(guarded::kGuarded), 3), c10::Error);
}

TEST(Routing, TellsAChoiceThatIsNotPossible) {
  const auto score_TN = at::rand({2, 6});
  EXPECT_THROW((void)choose_top_k(score_TN, {.top_k = 7}), Error);
  EXPECT_THROW((void)choose_top_k(score_TN, {.top_k = 1, .num_groups = 4}), Error);
  EXPECT_THROW((void)choose_top_k(score_TN, {.top_k = 3, .num_groups = 3, .top_groups = 1}), Error);
}

}  // namespace
}  // namespace coppice::kernels
