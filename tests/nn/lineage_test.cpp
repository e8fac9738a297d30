#include "coppice/nn/lineage.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/kernels/routing.h"
#include "tests/testing/errors.h"

namespace coppice::nn {
namespace {

using families::GateFunction;
using families::Routing;

struct Case {
  const char* name;
  Routing routing;
};
const Case kCases[] = {
    {"SoftmaxFirst", {.gate = GateFunction::kSoftmaxTopK}},
    {"SoftmaxFirstRenormalised", {.gate = GateFunction::kSoftmaxTopK, .renormalise = true}},
    {"SoftmaxFirstWithBias", {.gate = GateFunction::kSoftmaxTopK, .has_selection_bias = true}},
    {"TopKFirst", {.gate = GateFunction::kTopKSoftmax}},
    {"Sigmoid", {.gate = GateFunction::kSigmoidTopK, .routed_scaling = 2.5, .has_selection_bias = true}},
    {"SigmoidRenormalised",
     {.gate = GateFunction::kSigmoidTopK,
      .renormalise = true,
      .renormalise_epsilon = 1e-20,
      .has_selection_bias = true}},
    {"SigmoidInGroups",
     {.gate = GateFunction::kSigmoidTopK,
      .renormalise = true,
      .num_groups = 4,
      .top_groups = 2,
      .has_selection_bias = true}},
};

constexpr int64_t kParents = 8, kTopK = 3, kTokens = 400;
// Uneven, and whole groups of two parents lie together.
const std::vector<uint32_t> kChildren = {0, 0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 6, 6, 7};

at::Tensor index_of_parents() {
  std::vector<int64_t> parents(kChildren.begin(), kChildren.end());
  return at::tensor(parents);
}

std::shared_ptr<const Lineage> lineage_of(int64_t layer, const std::vector<uint32_t>& parents, int64_t num_lineages) {
  return std::make_shared<Lineage>(std::map<int64_t, std::vector<uint32_t>>{{layer, parents}}, num_lineages);
}

std::shared_ptr<LineageRouting> lineage(double share = 1) {
  return std::make_shared<LineageRouting>(lineage_of(0, kChildren, kParents), share, uint64_t{7});
}

class LineageRoutes : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    before_TL = at::randn({kTokens, kParents});
    bias_L = GetParam().routing.has_selection_bias ? at::randn({kParents}) * 0.1 : at::Tensor();
    after_TE = at::index_select(before_TL, 1, index_of_parents());
    bias_E = bias_L.defined() ? at::index_select(bias_L, 0, index_of_parents()) : at::Tensor();
  }
  at::Tensor before_TL, bias_L, after_TE, bias_E;
};

TEST_P(LineageRoutes, ChoosesTheParentsAndTheirGatesAfterGrowth) {
  const auto& routing = GetParam().routing;
  auto in_TL = before_TL.clone().set_requires_grad(true);
  auto in_TE = after_TE.clone().set_requires_grad(true);
  const auto before = route(in_TL, bias_L, routing, kTopK);
  const auto after = route_by_lineage(in_TE, bias_E, routing, kTopK, *lineage(), 0, 1000);
  const auto parents_TK = index_of_parents().index({after.index_TK});
  ASSERT_TRUE(at::equal(parents_TK, before.index_TK));
  EXPECT_LT((after.gate_TK - before.gate_TK).abs().max().item<float>(), 1e-6f);

  // Siblings' gradients sum to the parent's.
  const auto weight_TK = at::randn({kTokens, kTopK});
  (before.gate_TK * weight_TK).sum().backward();
  (after.gate_TK * weight_TK).sum().backward();
  const auto summed_TL = at::zeros_like(in_TL).index_add(1, index_of_parents(), in_TE.grad());
  EXPECT_LT((summed_TL - in_TL.grad()).abs().max().item<float>(), 2e-6f);
}

TEST_P(LineageRoutes, BalancesLineagesAsParentsWereBalanced) {
  const auto& routing = GetParam().routing;
  const auto before = route(before_TL, bias_L, routing, kTopK);
  const auto after = route_by_lineage(after_TE, bias_E, routing, kTopK, *lineage(), 0, 0);
  const auto of_lineages = [](const at::Tensor& value_E) { return lineage()->lineage->sums(0, value_E); };
  for (const auto form : {BalanceForm::kPerLayer, BalanceForm::kTransformers}) {
    const auto of_parents_TE = balancing_distribution(before, routing.gate, form);
    const auto of_children_TE = balancing_distribution(after, routing.gate, form);
    EXPECT_LT((of_lineages(of_children_TE.sum(0)) - of_parents_TE.sum(0)).abs().max().item<float>(), 1e-3f);
    const auto half_TE = balancing_distribution(route_by_lineage(after_TE, bias_E, routing, kTopK, *lineage(0.5), 0, 0),
                                                routing.gate, form);
    EXPECT_LT((half_TE.sum(1) - 1).abs().max().item<float>(), 1e-6f) << "a distribution for every token, held or not";
  }
  EXPECT_TRUE(at::equal(of_lineages(kernels::expert_counts(after.index_TK, 16)),
                        kernels::expert_counts(before.index_TK, kParents)));
  EXPECT_NEAR(z_loss(after.logits_TE).item<float>(), z_loss(before.logits_TE).item<float>(), 1e-4);
}

TEST_P(LineageRoutes, LetsTokensGoOneByOne) {
  const auto& routing = GetParam().routing;
  const auto held = route_by_lineage(after_TE, bias_E, routing, kTopK, *lineage(1), 0, 0);
  const auto half = route_by_lineage(after_TE, bias_E, routing, kTopK, *lineage(0.5), 0, 0);
  const auto plain = route(after_TE, bias_E, routing, kTopK);
  EXPECT_TRUE(
      at::equal(route_by_lineage(after_TE, bias_E, routing, kTopK, *lineage(0), 0, 0).index_TK, plain.index_TK));
  int64_t num_held = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    const bool is_held = at::equal(half.index_TK[t], held.index_TK[t]);
    ASSERT_TRUE(is_held || at::equal(half.index_TK[t], plain.index_TK[t]));
    num_held += is_held;
  }
  EXPECT_GT(num_held, kTokens * 4 / 10);
  EXPECT_LT(num_held, kTokens * 7 / 10);
}

TEST_P(LineageRoutes, SharesTokensEvenlyAmongEqualSiblings) {
  const auto after = route_by_lineage(after_TE, bias_E, GetParam().routing, kTopK, *lineage(), 0, 0);
  const auto count_E = kernels::expert_counts(after.index_TK, 16);
  const auto* const count = count_E.const_data_ptr<int64_t>();
  const double all = static_cast<double>(count[0] + count[1] + count[2]);
  for (int e = 0; e < 3; ++e) EXPECT_NEAR(static_cast<double>(count[e]), all / 3, 4 * std::sqrt(all / 3)) << e;
}

INSTANTIATE_TEST_SUITE_P(Classes, LineageRoutes, ::testing::ValuesIn(kCases),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(LineageRoute, TakesTheBetterSiblingOnceTheyDiffer) {
  const LineageRouting apart{lineage_of(3, {0, 1, 0, 1}, 2)};
  const auto logits = at::tensor(std::vector<float>{1.0f, 0.0f, 1.1f, -1.0f}).view({1, 4});
  for (uint64_t token = 0; token < 20; ++token) {
    const auto routed = route_by_lineage(logits, {}, {.gate = GateFunction::kTopKSoftmax}, 2, apart, 3, token);
    EXPECT_EQ(routed.index_TK[0][0].item<int64_t>(), 2);
    EXPECT_EQ(routed.index_TK[0][1].item<int64_t>(), 1);
  }
}

// The loss of such a step is NaN, and that is what ends the run.
TEST(LineageRoute, GivesEveryTokenExpertsWhereLogitsAreNotFinite) {
  const LineageRouting pairs{lineage_of(0, {0, 1, 0, 1}, 2)};
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const auto logits = at::tensor(std::vector<float>{bad, 0.0f, bad, bad}).view({1, 4});
    for (const auto gate : {GateFunction::kTopKSoftmax, GateFunction::kSoftmaxTopK, GateFunction::kSigmoidTopK}) {
      const auto index_TK = route_by_lineage(logits, {}, {.gate = gate}, 2, pairs, 0, 0).index_TK;
      EXPECT_EQ(index_TK[0][0].item<int64_t>() % 2 + index_TK[0][1].item<int64_t>() % 2, 1) << "of each lineage one";
    }
  }
}

// coppice.json comes from outside: each of these is an error, not a bug in coppice.
TEST(LineageRoute, RefusesTheLineageOfAnotherModel) {
  const auto refused = [](const std::vector<uint32_t>& parents, int64_t lineages, int64_t groups, ErrorCode code,
                          const char* word) {
    const LineageRouting lineage{lineage_of(0, parents, lineages)};
    const Routing routing{.gate = GateFunction::kSigmoidTopK, .num_groups = groups, .top_groups = 1};
    testing::expect_error(code, {"layer 0", word}, [&] {
      (void)route_by_lineage(at::zeros_like(at::tensor(std::vector<float>(4)).view({1, 4})), {}, routing, 2, lineage, 0,
                             0);
    });
  };
  refused({0, 1, 0}, 2, 1, ErrorCode::kFormat, "3 experts of 2 parents");
  refused({0, 0, 0, 0}, 1, 1, ErrorCode::kFormat, "of 1 parents");
  refused({0, 1, 2, 2}, 3, 2, ErrorCode::kFormat, "in 2 groups");
  refused({0, 1, 0, 7}, 2, 1, ErrorCode::kFormat, "parent 7");
  refused({0, 0, 0, 0}, 2, 1, ErrorCode::kFormat, "parent 1 has no child");
  refused({0, 1, 0, 1}, 2, 2, ErrorCode::kUnsupported, "router group");
  const LineageRouting none{std::make_shared<Lineage>(std::map<int64_t, std::vector<uint32_t>>{}, 0)};
  testing::expect_error(ErrorCode::kFormat, {"layer 0", "no parents"}, [&] {
    (void)route_by_lineage(at::tensor(std::vector<float>(4)).view({1, 4}), {}, {}, 2, none, 0, 0);
  });
}

}  // namespace
}  // namespace coppice::nn
