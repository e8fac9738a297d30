#include "coppice/plan/growth_settings.h"

#include <gtest/gtest.h>

#include "coppice/base/error.h"

namespace coppice::plan {
namespace {

families::Routing with_bias(bool has_bias) {
  families::Routing routing;
  routing.has_selection_bias = has_bias;
  return routing;
}

TEST(GrowthSettings, TakeDefaultsWhereNothingIsSet) {
  const GrowthOptions made = GrowthSettings{}.growth_options(), defaults;
  EXPECT_EQ(made.experts, defaults.experts);
  EXPECT_EQ(made.select, defaults.select);
  EXPECT_EQ(made.metric, defaults.metric);
  EXPECT_EQ(made.expert_init, defaults.expert_init);
  EXPECT_EQ(made.seed, defaults.seed);
}

TEST(GrowthSettings, TakeARecipeWhereNothingIsSet) {
  GrowthSettings settings;
  settings.recipe = "paper";
  settings.max_duplicates = 2;
  settings.expert_init = methods::MethodChoice{"copy_noise", {}};
  EXPECT_EQ(settings.rule(), "greedy");
  const auto made = settings.with_recipe(with_bias(true), true);
  EXPECT_FALSE(made.recipe);
  EXPECT_EQ(made.select, "greedy");
  EXPECT_EQ(made.metric, "gradient_squared");
  EXPECT_EQ(made.max_duplicates, 2) << "what is set stays";
  EXPECT_EQ(made.expert_init->name, "copy_noise") << "what is set stays";
  EXPECT_EQ(made.router_init, methods::MethodChoice::from_text("bias_only:delta=0.001"));
  EXPECT_EQ(made.optimizer_state->name, "reset");
}

TEST(GrowthSettings, TakeOfARecipeWhatTheModelAndTheRuleCanUse) {
  GrowthSettings settings;
  settings.recipe = "paper";
  const auto plain = settings.with_recipe(with_bias(false), false);
  EXPECT_EQ(plain.router_init->name, "perturb_new_only");
  EXPECT_FALSE(plain.optimizer_state) << "the model has no moments";
  settings.select = "uniform";
  const auto uniform = settings.with_recipe(with_bias(true), true);
  EXPECT_EQ(uniform.select, "uniform");
  EXPECT_FALSE(uniform.metric || uniform.layer_selection || uniform.max_duplicates) << "the rule reads no scores";
}

TEST(GrowthSettings, RefuseUnknownRecipes) {
  GrowthSettings settings;
  settings.recipe = "papers";
  EXPECT_THROW((void)settings.with_recipe(with_bias(true), true), Error);
  EXPECT_THROW((void)settings.rule(), Error);
}

}  // namespace
}  // namespace coppice::plan
