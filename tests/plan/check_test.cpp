#include <gtest/gtest.h>

#include "coppice/methods/expert_init.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/plan.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"
#include "tests/testing/hand_made_models.h"

namespace coppice::plan {
namespace {

using methods::MethodChoice;
using testing::example_config;
using testing::expect_error;

families::ModelConfig grouped(int64_t groups) {
  auto config = example_config("glm4_moe");
  config.routing.num_groups = groups;
  config.routing.top_groups = 1;
  return config;
}

void expect_refused(const families::ModelConfig& config, const GrowthPlan& plan,
                    std::initializer_list<const char*> parts) {
  SCOPED_TRACE(*parts.begin());
  expect_error(ErrorCode::kUsage, parts, [&] { check_plan(config, plan, false); });
}

TEST(CheckPlan, RefusesAPlanOfAnotherModel) {
  const auto config = example_config("mixtral");
  const auto good = make_plan(config, {}, nullptr);
  EXPECT_NO_THROW(check_plan(config, good, false));
  expect_refused(example_config("mixtral", {.num_experts = 6}), good, {"8 experts", "has 6"});
  auto plan = good;
  plan.layers.pop_back();
  plan.layers[0].layer = 7;
  std::ranges::sort(plan.layers, {}, &methods::LayerPlan::layer);
  expect_refused(config, plan, {"no parents for layer 0, 2", "the model has no experts in layer 7"});
  expect_refused(example_config("glm4_moe", {.first_dense_layers = 1}), good, {"the model has no experts in layer 0"});
}

TEST(CheckPlan, NamesTheLayerWhoseMethodCannotWork) {
  const auto config = example_config("mixtral");
  auto plan = make_plan(config, {}, nullptr);
  plan.layers[1].router_init = MethodChoice{"bias_only", {}};
  expect_refused(config, plan, {"router-init of layer 1", "bias_only", "mixtral", "perturb_new_only"});
  plan.layers[1].router_init = MethodChoice{"copi", {}};
  expect_refused(config, plan, {"'copi'", "'copy'"});
  plan.layers[1] = {
      .layer = 1, .children = plan.layers[1].children, .expert_init = MethodChoice{"drop_units", {{"ratio", 7}}}};
  expect_refused(config, plan, {"ratio", "7"});
}

// Every method that mixes with another expert says so where there is none.
TEST(CheckPlan, RefusesPartnersInAModelOfOneExpert) {
  const auto config = example_config("mixtral", {.num_experts = 1, .top_k = 1});
  for (const methods::ExpertInit& method : methods::expert_inits()) {
    const GrowthOptions options{.expert_init = {std::string(method.name), {}}};
    if (method.needs_partner) {
      expect_error(ErrorCode::kUsage, {"expert-init", options.expert_init.name.c_str(), "has only 1"},
                   [&] { (void)make_plan(config, options, nullptr); });
    } else {
      EXPECT_NO_THROW(make_plan(config, options, nullptr)) << method.name;
    }
  }
  expect_error(ErrorCode::kUsage, {"router-init", "interpolate", "has only 1"},
               [&] { (void)make_plan(config, {.router_init = MethodChoice{"interpolate", {}}}, nullptr); });
  expect_error(ErrorCode::kUsage, {"optimizer-state", "interpolate", "has only 1"},
               [&] { (void)make_plan(config, {.optimizer_state = {"interpolate", {}}}, nullptr); });
}

TEST(CheckPlan, KeepsChildrenInTheirRouterGroupUnlessAllowed) {
  const auto config = grouped(4);
  auto plan = make_plan(config, {}, nullptr);
  std::swap(plan.layers[1].children[1], plan.layers[1].children[15]);
  expect_refused(config, plan, {"layer 1, expert 1", "parent 7", "group 3", "group 0", "--allow-regroup"});
  EXPECT_NO_THROW(check_plan(config, plan, true));
}

TEST(MakePlan, MayRegroupIfAllowed) {
  const auto config = grouped(4);
  GrowthOptions options{.order = "append", .allow_regroup = true};
  const auto plan = make_plan(config, options, nullptr);
  EXPECT_EQ(plan.layer(0).children[9], (methods::Child{1, 1}));  // of group 0, in group 2
  options.experts = ExpertCount::from_text("12");                // one new expert a group; 3 of 12 a group
  EXPECT_NO_THROW(make_plan(config, options, nullptr));
  options.experts = ExpertCount::from_text("10");
  expect_error(ErrorCode::kUsage, {"10", "4 equal router groups"}, [&] { (void)make_plan(config, options, nullptr); });
  expect_error(ErrorCode::kUsage, {"allow-regroup", "no router groups"},
               [] { (void)make_plan(example_config("mixtral"), {.allow_regroup = true}, nullptr); });
}

// Layers of deepseek_v4 that choose experts by a table of tokens.
TEST(CheckPlan, KeepsTheNumbersAndTheTopKThatATableOfTokensNames) {
  auto config = example_config("glm4_moe");
  config.routing.has_expert_table = true;
  EXPECT_NO_THROW(make_plan(config, {}, nullptr));
  expect_error(ErrorCode::kUsage, {"order", "expert 1", "table", "append"},
               [&] { (void)make_plan(config, {.order = "siblings"}, nullptr); });
  expect_error(ErrorCode::kUsage, {"top-k", "table", "columns"}, [&] { check_can_scale(config, "top-k"); });
}

TEST(CheckPlan, RefusesDormantCopiesWhereScoresHaveNoBound) {
  auto config = example_config("glm4_moe");
  const GrowthOptions dormant{.router_init = MethodChoice{"dormant", {}}};
  EXPECT_NO_THROW(make_plan(config, dormant, nullptr));
  config.routing.bias_on_logits = true;
  expect_error(ErrorCode::kUsage, {"dormant", "bound", "logits"}, [&] { (void)make_plan(config, dormant, nullptr); });
  config.routing.bias_on_logits = false;
  config.routing.gate = families::GateFunction::kSqrtSoftplusTopK;
  expect_error(ErrorCode::kUsage, {"dormant", "softplus"}, [&] { (void)make_plan(config, dormant, nullptr); });
}

TEST(CheckPlan, RefusesAScaleOfGatesThatAreNotDividedAtTopOne) {
  families::Family family = *example_config("glm4_moe").family;
  family.renormalises_top_1 = false;
  family.normalises_experts = true;
  auto config = example_config("glm4_moe", {.top_k = 1});
  config.family = &family;
  expect_error(ErrorCode::kUsage, {"top-k", "two or more"}, [&] { check_can_scale(config, "top-k"); });
  config.top_k = 2;
  EXPECT_NO_THROW(check_can_scale(config, "top-k"));
  expect_error(ErrorCode::kUsage, {"split", "normalises"}, [&] { check_can_scale(config, "split"); });
}

// -- top-K that grows ---------------------------------------------------------

TEST(ScaledTopK, RewritesTheConfiguration) {
  const auto config = example_config("mixtral");
  const auto plan = make_plan(config, {.experts = ExpertCount::from_text("3x"), .scale_top_k = true}, nullptr);
  const auto after = families::read_config(grown_config(config, plan), "after");
  EXPECT_EQ(after.num_experts, 24);
  EXPECT_EQ(after.top_k, 3 * config.top_k);
}

TEST(ScaledTopK, ScalesGroupsAndRoutedScalingWhereGatesAreNotShares) {
  auto config = grouped(2);
  config.json["n_group"] = Json(2);
  config.json["topk_group"] = Json(1);
  config.json["norm_topk_prob"] = Json(false);
  config.json["routed_scaling_factor"] = Json(3.0);
  config = families::read_config(config.json, "config");
  ASSERT_FALSE(config.routing.renormalise);
  const auto plan = make_plan(config, {.router_init = MethodChoice{"copy", {}}, .scale_top_k = true}, nullptr);
  EXPECT_EQ(plan.order, Order::kAppend);
  auto after = families::read_config(grown_config(config, plan), "after");
  EXPECT_EQ(after.routing.num_groups, 4);
  EXPECT_EQ(after.routing.top_groups, 2);
  EXPECT_EQ(after.routing.routed_scaling, 1.5);
  // And back again.
  auto undo = plan;
  undo.is_undo = true;
  undo.experts_after = 8;
  EXPECT_EQ(grown_config(after, undo), config.json);
  EXPECT_THROW(make_plan(config, {.order = "siblings", .scale_top_k = true}, nullptr), Error);
}

TEST(ScaledTopK, WantsAWholeMultipleOfEveryExpert) {
  const auto config = example_config("mixtral");
  expect_error(ErrorCode::kUsage, {"top-k", "8 to 12"}, [&] {
    (void)make_plan(config, {.experts = ExpertCount::from_text("12"), .scale_top_k = true}, nullptr);
  });
  const auto scores = testing::example_scores(config);
  expect_error(ErrorCode::kUsage, {"top-k", "waterfill"},
               [&] { (void)make_plan(config, {.scale_top_k = true}, &scores); });
  auto plan = make_plan(config, {.scale_top_k = true}, nullptr);
  plan.layers[2].children.back() = {0, 2};
  expect_refused(config, plan, {"layer 2, expert 0", "3 children", "multiplied by 2"});
}

TEST(ScaledTopK, DividesTheSelectionBiasBesideSoftmaxGates) {
  auto config = example_config("glm4_moe");
  config.routing.gate = families::GateFunction::kSoftmaxTopK;
  EXPECT_EQ(
      make_plan(config, {.experts = ExpertCount::from_text("4x"), .scale_top_k = true}, nullptr).selection_bias_factor,
      0.25);
}

// llama4: gates are whole, and there is no factor in the configuration to divide them by.
TEST(ScaledTopK, DividesTheDownMatricesWhereNothingElseCanBe) {
  const auto config = families::read_config(testing::surgery_config("llama4_text", "num_local_experts", 4), "config");
  ASSERT_FALSE(config.family->has_routed_scaling);
  auto plan = testing::example_plan(4, 3, {"copy", {}});
  plan.top_k_factor = 3;
  set_factors(config, plan);
  EXPECT_EQ(plan.down_factor, 1.0 / 3);
  EXPECT_EQ(plan.down_bias_factor, 1.0 / 3);
  plan.is_undo = true;
  set_factors(config, plan);
  EXPECT_EQ(plan.down_factor, 3);
}

// Gates divided by their 2-norm: m of them are worth sqrt(m) of one.
TEST(ScaledTopK, FollowsTheNormOfGates) {
  auto config = example_config("mixtral");
  config.routing.gate_norm = 2;
  auto plan = testing::example_plan(8, 4, {"copy", {}});
  plan.top_k_factor = 4;
  set_factors(config, plan);
  EXPECT_DOUBLE_EQ(plan.down_factor, 0.5);
  plan.split = 4;
  set_factors(config, plan);
  EXPECT_DOUBLE_EQ(plan.down_factor, 2);
  EXPECT_DOUBLE_EQ(plan.down_bias_factor, 0.5);
}

TEST(CheckPlan, RefusesFactorsThatAreNotTheModels) {
  const auto config = example_config("mixtral");
  const auto refused = [&](GrowthPlan plan, double GrowthPlan::* factor, const char* what) {
    plan.*factor = 5;
    expect_refused(config, plan, {what, "by 5"});
  };
  for (const auto& plan : {make_plan(config, {.split = 2}, nullptr), make_plan(config, {.scale_top_k = true}, nullptr),
                           make_plan(config, {}, nullptr)}) {
    refused(plan, &GrowthPlan::down_factor, "down matrices");
    refused(plan, &GrowthPlan::down_bias_factor, "biases of down");
    refused(plan, &GrowthPlan::selection_bias_factor, "selection biases");
  }
}

TEST(CheckPlan, RefusesZeroBiasesThatAreSetOtherwise) {
  const auto config = example_config("glm4_moe");
  expect_error(ErrorCode::kUsage, {"balance-bias", "dormant"}, [&] {
    (void)make_plan(config, {.router_init = MethodChoice{"dormant", {}}, .balance_bias = "zero"}, nullptr);
  });
}

}  // namespace
}  // namespace coppice::plan
