#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/upcycle/plan.h"
#include "tests/upcycle/growth_examples.h"

namespace coppice::upcycle {
namespace {

using families::GateFunction;

struct Setting {
  GateFunction gate = GateFunction::kSoftmaxTopK;
  bool renormalise = true;
  int64_t top_k = 1;
  bool selection_bias = false;
  int64_t groups = 1;
  const char* expert_init = "copy";
  const char* router_init = "copy";
  const char* balance_bias = "copy";
  families::RouterKind kind = families::RouterKind::kPlain;
};

Exactness exactness_of(const Setting& s) {
  families::ModelConfig config;
  config.num_experts = 8;
  config.top_k = s.top_k;
  config.routing.gate = s.gate;
  config.routing.renormalise = s.renormalise;
  config.routing.has_selection_bias = s.selection_bias;
  config.routing.num_groups = s.groups;
  config.routing.kind = s.kind;
  auto plan = testing::example_plan(8, 2, {s.expert_init, {}}, {s.router_init, {}});
  plan.balance_bias = s.balance_bias;
  const Exactness result = exactness(config, plan);
  EXPECT_TRUE(result.reason.ends_with('.')) << result.reason;
  EXPECT_TRUE(result.reason.starts_with(result.exact ? "Exact" : "Not exact")) << result.reason;
  return result;
}

TEST(Exactness, HoldsForTopOneWithGatesThatIgnoreTheNumberOfExperts) {
  EXPECT_TRUE(exactness_of({.gate = GateFunction::kSoftmaxTopK}).exact);
  EXPECT_TRUE(exactness_of({.gate = GateFunction::kTopKSoftmax}).exact);
  for (const bool renormalise : {false, true}) {
    EXPECT_TRUE(
        exactness_of({.gate = GateFunction::kSigmoidTopK, .renormalise = renormalise, .selection_bias = true}).exact);
  }
  EXPECT_TRUE(exactness_of({.expert_init = "permute_units"}).exact);
}

TEST(Exactness, HoldsForCopiesThatAreNeverChosen) {
  families::ModelConfig config;
  config.num_experts = 8;
  config.top_k = 2;
  config.routing.gate = GateFunction::kSigmoidTopK;
  config.routing.renormalise = config.routing.has_selection_bias = true;
  const auto exact = [&](const std::map<std::string, double>& given) {
    return exactness(config, testing::example_plan(8, 2, {"copy_noise", {}}, {"bias_only", given})).exact;
  };
  EXPECT_TRUE(exact({{"shift", -100}}));
  EXPECT_FALSE(exact({{"shift", -1}}));
  EXPECT_FALSE(exact({{"shift", -100}, {"noise_to_original", 1}}));
  config.routing.num_groups = 8;
  config.routing.top_groups = 4;  // a group of one expert and its copy is scored by both
  EXPECT_FALSE(exact({{"shift", -100}}));
  config.routing = {.gate = GateFunction::kTopKSoftmax, .has_router_bias = true};
  EXPECT_TRUE(exact({{"shift", -1e4}}));
  EXPECT_FALSE(exact({{"shift", -100}}));  // a logit may be as large
}

TEST(Exactness, FailsWhereSiblingsTakeEachOthersSlots) {
  for (const auto gate : {GateFunction::kSoftmaxTopK, GateFunction::kTopKSoftmax, GateFunction::kSigmoidTopK}) {
    const auto result = exactness_of({.gate = gate, .top_k = 2});
    EXPECT_FALSE(result.exact);
    EXPECT_NE(result.reason.find("siblings"), std::string::npos);
  }
}

TEST(Exactness, FailsWhereTheSoftmaxSeesMoreExperts) {
  EXPECT_FALSE(exactness_of({.gate = GateFunction::kSoftmaxTopK, .renormalise = false}).exact);
  EXPECT_FALSE(exactness_of({.gate = GateFunction::kSoftmaxTopK, .selection_bias = true}).exact);
}

TEST(Exactness, FailsWhereGroupsAreScoredByTwoExperts) {
  EXPECT_FALSE(exactness_of({.gate = GateFunction::kSigmoidTopK, .groups = 2}).exact);
}

TEST(Exactness, FailsWhereNoConfigurationHelps) {
  using families::RouterKind;
  for (const auto kind : {RouterKind::kSparseMixer, RouterKind::kCapacity, RouterKind::kTrailingChoices}) {
    EXPECT_FALSE(exactness_of({.kind = kind}).exact);
    EXPECT_EQ(exactness_of({.top_k = 2, .kind = kind}).reason.find("it would be exact"), std::string::npos);
  }
}

TEST(Exactness, SaysWhatWouldBeExactWhereMoreExpertsAnswer) {
  const auto reason = [](const Setting& s) { return exactness_of(s).reason; };
  using ::testing::HasSubstr;
  EXPECT_THAT(reason({.top_k = 2}), HasSubstr("With top-4 it would be exact"));
  EXPECT_THAT(reason({.gate = GateFunction::kSigmoidTopK, .renormalise = false, .top_k = 2}),
              HasSubstr("With top-4, and routed_scaling_factor divided by m"));
  EXPECT_THAT(reason({.top_k = 2, .selection_bias = true}), HasSubstr("the selection bias divided by m"));
  for (const Setting& s : {Setting{.top_k = 2, .groups = 2}, Setting{.top_k = 2, .router_init = "copy_noise"}})
    EXPECT_THAT(reason(s), ::testing::Not(HasSubstr("would be exact")));
}

TEST(Exactness, FailsWhereExpertsOrTheirScoresChange) {
  EXPECT_FALSE(exactness_of({.expert_init = "copy_noise"}).exact);
  EXPECT_FALSE(exactness_of({.expert_init = "drop_units"}).exact);
  for (const char* method : {"copy_noise", "bias_only", "perturb_new_only"}) {
    EXPECT_FALSE(exactness_of({.router_init = method}).exact) << method;
  }
  EXPECT_FALSE(
      exactness_of({.gate = GateFunction::kSigmoidTopK, .selection_bias = true, .balance_bias = "zero"}).exact);
}

}  // namespace
}  // namespace coppice::upcycle
