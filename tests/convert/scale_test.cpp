#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "coppice/convert/plan.h"
#include "tests/testing/convert_examples.h"
#include "tests/testing/errors.h"

namespace coppice::convert {
namespace {

using testing::conversion;
using testing::dense_config;
using testing::expect_error;

ConversionPlan plan_of(const std::string& to, int64_t experts, int64_t top_k, int64_t granularity,
                       std::optional<std::string> routing = {}) {
  auto options = conversion(to, experts, top_k, granularity);
  options.routing = std::move(routing);
  return make_conversion_plan(dense_config(), 1, options);
}

// docs/convert.md: a = G where gates add up to 1, X G^2 / K = E G / K where they are shares of a softmax over all.
TEST(FunctionScale, IsTheFormulaOfTheGates) {
  EXPECT_EQ(function_scale(plan_of("mixtral", 24, 6, 3)), 3);
  EXPECT_EQ(function_scale(plan_of("granitemoe", 24, 6, 3)), 3);
  EXPECT_EQ(function_scale(plan_of("qwen2_moe", 24, 6, 3)), 24.0 * 3 / 6);
  EXPECT_EQ(function_scale(plan_of("qwen2_moe", 24, 6, 3, "topk_softmax")), 3);
  EXPECT_EQ(function_scale(plan_of("glm4_moe", 24, 6, 3)), 3);
  ConversionPlan whole_sigmoids = plan_of("glm4_moe", 24, 6, 3);
  whole_sigmoids.renormalise = false;
  EXPECT_EQ(function_scale(whole_sigmoids), 2.0 * 3 / 6);
}

// The paper's E8G8T8: 64 experts, top-8, softmax first: a = 64, of which each matrix gets 4.
TEST(ExpertScale, IsThePapersForTheirExample) {
  auto options = conversion("qwen2_moe", 64, 8, 8);
  const auto plan =
      make_conversion_plan(dense_config("llama", Json::object({{"intermediate_size", Json(64)}})), 1, options);
  EXPECT_EQ(function_scale(plan), 64);
  EXPECT_DOUBLE_EQ(plan.scale.gate, 4);
  EXPECT_DOUBLE_EQ(plan.scale.up, 4);
  EXPECT_DOUBLE_EQ(plan.scale.down, 4);
}

TEST(ExpertScale, SpreadsTheWholeScaleOverTheMatrices) {
  const auto plan = plan_of("mixtral", 24, 6, 3);
  EXPECT_EQ(expert_scale(plan, "down", false, 64), (ExpertScale{1, 1, 3}));
  EXPECT_EQ(expert_scale(plan, "none", false, 64), ExpertScale{});
  const ExpertScale cbrt = expert_scale(plan, "cbrt", false, 64);
  EXPECT_NEAR(cbrt.gate * cbrt.up * cbrt.down, 3, 1e-12);
  expect_error(ErrorCode::kUsage, {"scale", "'cubic'"}, [&] { (void)expert_scale(plan, "cubic", false, 64); });
}

TEST(Calibration, IsNothingForEqualLogits) {
  EXPECT_DOUBLE_EQ(calibration_factor(plan_of("qwen2_moe", 24, 6, 3), 0), 1);
}

// Two choices of which one answers: the mean of the larger of two softmax shares is E[1 / (1 + exp(-|z|))], z ~ N(0,
// 2).
TEST(Calibration, AgreesWithTheIntegralForTwoChoices) {
  const double factor = calibration_factor(plan_of("qwen2_moe", 6, 3, 3), 1.0);
  double integral = 0, weight = 0;
  for (double z = -12; z <= 12; z += 1e-3) {
    const double density = std::exp(-z * z / 4);
    integral += density / (1 + std::exp(-std::abs(z)));
    weight += density;
  }
  EXPECT_NEAR(factor, integral / weight / 0.5, 3e-3);
}

TEST(Calibration, CountsExpertsOneByOneWithoutGroups) {
  auto options = conversion("qwen2_moe", 24, 6, 3);
  const double groups = calibration_factor(make_conversion_plan(dense_config(), 1, options), 0.5);
  options.virtual_groups = false;
  const double experts = calibration_factor(make_conversion_plan(dense_config(), 1, options), 0.5);
  EXPECT_GT(experts, groups);  // 6 of 24 logits reach further than 2 of 8
}

TEST(Calibration, IsRefusedWhereItHasNoEffect) {
  const auto refused = [](const char* word, const ConversionPlan& plan, const char* mode) {
    expect_error(ErrorCode::kUsage, {"calibrate", word}, [&] { (void)expert_scale(plan, mode, true, 64); });
  };
  refused("add up to 1", plan_of("mixtral", 8, 2, 1), "down");
  ConversionPlan plan = plan_of("qwen2_moe", 8, 2, 1);
  refused("nothing is scaled", plan, "none");
  plan.router = {"zero", {}};
  refused("equal logits", plan, "down");
  plan.router = {"rows", {}};
  refused("not known", plan, "down");
}

TEST(ConversionExactness, KnowsTheExactSettings) {
  const auto exact = [](ConversionPlan plan, const char* mode, const char* activation = "silu") {
    plan.scale = expert_scale(plan, mode, false, 64);
    return conversion_exactness(plan, activation, 256, 64).exact;
  };
  EXPECT_TRUE(exact(plan_of("mixtral", 24, 6, 3), "down"));
  EXPECT_TRUE(exact(plan_of("mixtral", 8, 2, 1), "cbrt"));  // nothing to scale
  EXPECT_TRUE(exact(plan_of("granitemoe", 24, 6, 3), "cbrt", "relu"));
  EXPECT_FALSE(exact(plan_of("granitemoe", 24, 6, 3), "cbrt"));
  EXPECT_FALSE(exact(plan_of("mixtral", 24, 6, 3), "none"));
  EXPECT_FALSE(exact(plan_of("qwen2_moe", 8, 2, 1), "down"));
  EXPECT_TRUE(exact(plan_of("qwen2_moe", 8, 2, 1, "topk_softmax"), "down"));
  ConversionPlan plan = plan_of("mixtral", 24, 6, 3);
  plan.virtual_groups = false;
  EXPECT_FALSE(exact(plan, "down"));
  plan.virtual_groups = true;
  plan.router = {"zero", {}};
  EXPECT_FALSE(exact(plan, "down"));
  EXPECT_FALSE(conversion_exactness(plan, "silu", 256, 64).known) << "ties may take whole groups";
  plan.router = {"random", {}};
  plan.expert_init = {"permute_units", {}};
  EXPECT_TRUE(exact(plan, "down"));
  plan.expert_init = {"copy_noise", {}};
  EXPECT_FALSE(exact(plan, "down"));
  plan.expert_init = {"drop_units", {{"ratio", 0}}};
  EXPECT_TRUE(exact(plan, "down"));
  plan.expert_init = {"drop_units", {{"ratio", 0.01}}};
  EXPECT_FALSE(exact(plan, "down")) << "of 256 units it drops two, of 16 it would drop none";
  plan.parents = 2;
  EXPECT_FALSE(exact(plan, "down"));
}

// What is said is true: gates are judged by what the routing makes of them, methods by what they change.
TEST(ConversionExactness, GivesTheTrueReason) {
  const auto verdict = [](ConversionPlan plan) {
    plan.scale = expert_scale(plan, "down", false, 64);
    return conversion_exactness(plan, "silu", 256, 64);
  };
  EXPECT_TRUE(verdict(plan_of("qwen2_moe", 4, 4, 1)).exact) << "shares of a softmax over all experts add up to 1";
  EXPECT_TRUE(verdict(plan_of("qwen2_moe", 8, 8, 2)).exact);
  EXPECT_FALSE(verdict(plan_of("qwen2_moe", 8, 4, 2)).exact);
  EXPECT_EQ(function_scale(plan_of("qwen2_moe", 8, 8, 2)), 2);
  ConversionPlan zero = plan_of("qwen2_moe", 8, 2, 1);
  zero.router = {"zero", {}};
  EXPECT_TRUE(verdict(zero).exact) << "gates of 1/8 each, whatever the token";
  ConversionPlan ungrouped = plan_of("mixtral", 8, 8, 2);
  ungrouped.virtual_groups = false;
  EXPECT_THAT(verdict(ungrouped).reason, ::testing::HasSubstr("each slice has its own gate"));
  ungrouped.router = {"zero", {}};
  EXPECT_TRUE(verdict(ungrouped).exact);
  ungrouped.top_k = 4;
  EXPECT_THAT(verdict(ungrouped).reason, ::testing::HasSubstr("may not have all slices"));
  ConversionPlan plan = plan_of("mixtral", 8, 2, 1);
  for (const char* method : {"drop_units:ratio=0", "scaled_copy:factor=1", "copy_noise:lambda=0"}) {
    plan.expert_init = methods::MethodChoice::from_text(method);
    EXPECT_TRUE(verdict(plan).exact) << method;
  }
  for (const char* method : {"drop_units", "scaled_copy:factor=1.0001", "copy_noise:lambda=0.001", "interpolate"}) {
    plan.expert_init = methods::MethodChoice::from_text(method);
    EXPECT_THAT(verdict(plan).reason, ::testing::HasSubstr("changes the weights")) << method;
  }
}

}  // namespace
}  // namespace coppice::convert
