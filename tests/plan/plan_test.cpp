#include "coppice/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "coppice/plan/selection.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::plan {
namespace {

using methods::Child;
using ::testing::ElementsAre;
using testing::example_config;
using testing::example_scores;
using testing::expect_error;

// -- ExpertCount --------------------------------------------------------------

TEST(ExpertCount, ResolvesFactorsAndNumbers) {
  EXPECT_EQ(ExpertCount::from_text("2x").resolve(8), 16);
  EXPECT_EQ(ExpertCount::from_text("1.5x").resolve(8), 12);
  EXPECT_EQ(ExpertCount::from_text("1.125x").resolve(8), 9);
  EXPECT_EQ(ExpertCount::from_text("10x").resolve(8), 80);
  EXPECT_EQ(ExpertCount::from_text("48").resolve(8), 48);
  EXPECT_EQ(ExpertCount::from_text("48").to_text(), "48");
}

TEST(ExpertCount, RefusesWhatDoesNotGrowOrIsNotWhole) {
  for (const char* text : {"1x", "8", "7", "0x", "0", "0.5x"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kUsage, {text, "more experts"}, [&] { (void)ExpertCount::from_text(text).resolve(8); });
  }
  expect_error(ErrorCode::kUsage, {"whole"}, [] { (void)ExpertCount::from_text("1.3x").resolve(8); });
  expect_error(ErrorCode::kUsage, {"more than"}, [] { (void)ExpertCount::from_text("999999999x").resolve(8); });
}

TEST(ExpertCount, RefusesNonsense) {
  for (const char* text : {"", "x", "2 x", "-2x", "+2x", "2.x", ".5x", "1.5", "2xx", "two", "1e3", "1.5.5x", "0x10",
                           "99999999999999999999", "1.00000000001x"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kUsage, {"2x, 1.5x or 48"}, [&] { (void)ExpertCount::from_text(text); });
  }
}

// -- make_plan ----------------------------------------------------------------

GrowthOptions to(std::string_view experts) { return {.experts = ExpertCount::from_text(experts)}; }

std::vector<Child> children_of(const GrowthPlan& plan, int64_t layer) { return plan.layer(layer).children; }

TEST(MakePlan, DuplicatesEveryExpertOnceByDefault) {
  const auto plan = make_plan(example_config("mixtral"), to("2x"), nullptr);
  EXPECT_EQ(plan.select, "uniform");
  EXPECT_EQ(plan.experts_before, 8);
  EXPECT_EQ(plan.experts_after, 16);
  EXPECT_EQ(plan.order, Order::kAppend);
  ASSERT_EQ(plan.layers.size(), 3u);
  for (const methods::LayerPlan& layer : plan.layers) {
    for (uint32_t i = 0; i < 16; ++i) EXPECT_EQ(layer.children[i], (Child{i % 8, i / 8}));
  }
}

TEST(MakePlan, ChoosesTheRouterMethodByTheFamilysBiases) {
  EXPECT_EQ(make_plan(example_config("glm4_moe"), to("2x"), nullptr).router_init.name, "bias_only");
  EXPECT_EQ(make_plan(example_config("mixtral"), to("2x"), nullptr).router_init.name, "perturb_new_only");
  auto with_router_bias = example_config("mixtral");
  with_router_bias.routing.has_router_bias = true;
  EXPECT_EQ(make_plan(with_router_bias, to("2x"), nullptr).router_init.name, "bias_only");
}

TEST(MakePlan, BiasNoiseWithoutABiasNamesTheAlternatives) {
  auto options = to("2x");
  options.router_init = methods::MethodChoice{"bias_only", {}};
  expect_error(ErrorCode::kUsage, {"'bias_only'", "mixtral", "copy", "copy_noise", "perturb_new_only"},
               [&] { (void)make_plan(example_config("mixtral"), options, nullptr); });
}

TEST(MakePlan, FillsByWaterfillWhereThereAreScores) {
  const auto config = example_config("mixtral");
  auto scores = example_scores(config);
  for (auto* part : {&scores.metrics["gradient_squared"].fc1, &scores.metrics["gradient_squared"].fc2}) {
    part->sum[1] = {8, 4, 2, 1, 1, 1, 1, 1};
  }
  const auto plan = make_plan(config, to("11"), &scores);
  EXPECT_EQ(plan.select, "waterfill");
  EXPECT_THAT(plan.layer(1).siblings(8), ElementsAre(3, 2, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(plan.layer(0).siblings(8), ElementsAre(1, 1, 1, 1, 1, 2, 2, 2));
}

TEST(MakePlan, GreedyTakesThreeCopiesOfEachUnlessTold) {
  const auto config = example_config("mixtral");
  const auto scores = example_scores(config);
  auto options = to("2x");
  options.select = "greedy";
  EXPECT_THAT(make_plan(config, options, &scores).layer(0).siblings(8), ElementsAre(1, 1, 1, 1, 1, 3, 4, 4));
  options.max_duplicates = 5;
  EXPECT_THAT(make_plan(config, options, &scores).layer(0).siblings(8), ElementsAre(1, 1, 1, 1, 1, 1, 4, 6));
}

TEST(MakePlan, OrdersCopiesAfterTheOriginalsOrBesideTheirParent) {
  const auto config = example_config("mixtral", {.num_experts = 3, .top_k = 1});
  const auto scores = example_scores(config);
  auto options = to("7");
  options.select = "greedy";
  // Expert 2 gets three copies, expert 1 the one that is left.
  EXPECT_THAT(children_of(make_plan(config, options, &scores), 0),
              ElementsAre(Child{0, 0}, Child{1, 0}, Child{2, 0}, Child{1, 1}, Child{2, 1}, Child{2, 2}, Child{2, 3}));
  options.order = "siblings";
  EXPECT_THAT(children_of(make_plan(config, options, &scores), 0),
              ElementsAre(Child{0, 0}, Child{1, 0}, Child{1, 1}, Child{2, 0}, Child{2, 1}, Child{2, 2}, Child{2, 3}));
}

TEST(MakePlan, LeavesDenseLayersOut) {
  const auto plan = make_plan(example_config("glm4_moe", {.first_dense_layers = 2}), to("2x"), nullptr);
  ASSERT_EQ(plan.layers.size(), 1u);
  EXPECT_EQ(plan.layers[0].layer, 2);
  expect_error(ErrorCode::kInternal, {"layer 0"}, [&] { (void)plan.layer(0); });
}

families::ModelConfig grouped_config(int64_t groups) {
  auto config = example_config("glm4_moe");
  config.routing.num_groups = groups;
  config.routing.top_groups = 1;
  return config;
}

TEST(MakePlan, SelectsInsideEachRouterGroup) {
  const auto config = grouped_config(2);
  const auto scores = example_scores(config);  // rising: without groups all copies would go to the second half
  for (const SelectionRule& rule : selection_rules()) {
    SCOPED_TRACE(rule.name);
    auto options = to("12");
    options.select = rule.name;
    const auto plan = make_plan(config, options, &scores);
    EXPECT_EQ(plan.order, Order::kSiblings);
    for (const methods::LayerPlan& layer : plan.layers) {
      for (size_t i = 0; i < 12; ++i) EXPECT_EQ(layer.children[i].parent / 4, i / 6) << "child " << i;
    }
  }
}

TEST(MakePlan, EachRouterGroupDrawsItsOwnNumbers) {
  auto config = example_config("glm4_moe", {.num_experts = 64});
  config.routing.num_groups = 2;
  auto scores = example_scores(config);
  for (auto* part : {&scores.metrics["gradient_squared"].fc1, &scores.metrics["gradient_squared"].fc2}) {
    for (auto& [layer, values] : part->sum) values.assign(64, 1.0);
  }
  auto options = to("2x");
  options.select = "weighted_sampling";
  const auto siblings = make_plan(config, options, &scores).layer(0).siblings(64);
  EXPECT_NE(std::vector(siblings.begin(), siblings.begin() + 32), std::vector(siblings.begin() + 32, siblings.end()));
}

TEST(MakePlan, RefusesToBreakUpRouterGroups) {
  expect_error(ErrorCode::kUsage, {"4 equal router groups"},
               [] { (void)make_plan(grouped_config(4), to("10"), nullptr); });
  auto options = to("2x");
  options.order = "append";
  expect_error(ErrorCode::kUsage, {"append", "siblings"},
               [&] { (void)make_plan(grouped_config(4), options, nullptr); });
}

TEST(MakePlan, NamesTheNearestOfEveryUnknownName) {
  const auto config = example_config("glm4_moe");
  const auto check = [&](const char* given, const char* near, auto set) {
    SCOPED_TRACE(given);
    auto options = to("2x");
    set(options);
    expect_error(ErrorCode::kUsage, {given, near}, [&] { (void)make_plan(config, options, nullptr); });
  };
  check("'unform'", "'uniform'", [](auto& o) { o.select = "unform"; });
  check("'gate_mas'", "'gate_mass'", [](auto& o) { o.metric = "gate_mas"; });
  check("'both_mx'", "'both_max'", [](auto& o) { o.layer_selection = "both_mx"; });
  check("'copy_nose'", "'copy_noise'", [](auto& o) { o.expert_init.name = "copy_nose"; });
  check("'bias_onli'", "'bias_only'", [](auto& o) { o.router_init = methods::MethodChoice{"bias_onli", {}}; });
  check("'resett'", "'reset'", [](auto& o) { o.optimizer_state.name = "resett"; });
  check("'sibling'", "'siblings'", [](auto& o) { o.order = "sibling"; });
  check("'zeros'", "'zero'", [](auto& o) { o.balance_bias = "zeros"; });
  check("'ratoi'", "ratio", [](auto& o) { o.expert_init = {"drop_units", {{"ratoi", 0.5}}}; });
}

TEST(MakePlan, RefusesSettingsThatCannotBeMet) {
  const auto mixtral = example_config("mixtral");
  const auto refused = [&](std::initializer_list<const char*> parts, auto set) {
    SCOPED_TRACE(*parts.begin());
    auto options = to("2x");
    set(options);
    expect_error(ErrorCode::kUsage, parts, [&] { (void)make_plan(mixtral, options, nullptr); });
  };
  refused({"scores", "greedy"}, [](auto& o) { o.select = "greedy"; });
  refused({"balance-bias", "mixtral"}, [](auto& o) { o.balance_bias = "zero"; });
  refused({"more experts than before"}, [](auto& o) { o.experts = ExpertCount::from_text("8"); });
  refused({"max-duplicates"}, [](auto& o) { o.max_duplicates = 0; });
  expect_error(ErrorCode::kUnsupported, {"llama", "no experts"},
               [] { (void)make_plan(example_config("llama"), to("2x"), nullptr); });
}

TEST(MakePlan, RefusesScoresOfAnotherModel) {
  const auto config = example_config("mixtral");
  auto scores = example_scores(config);
  scores.experts = 4;
  scores.layers = 30;
  scores.model_type = "olmoe";
  expect_error(ErrorCode::kUsage, {"experts 4", "has 8", "layers 30", "has 3", "olmoe", "mixtral"},
               [&] { (void)make_plan(config, to("2x"), &scores); });
}

TEST(MakePlan, RefusesScoresThatAreNoneNamingLayerAndExpert) {
  const auto config = example_config("mixtral");
  auto scores = example_scores(config);
  scores.metrics["gradient_squared"].fc2.sum[2][5] = std::nan("");
  expect_error(ErrorCode::kNonFinite, {"layer 2", "expert 5"}, [&] { (void)make_plan(config, to("2x"), &scores); });
}

TEST(MakePlan, IsTheSameForTheSameSeed) {
  const auto config = example_config("mixtral");
  const auto scores = example_scores(config);
  auto options = to("3x");
  options.select = "weighted_sampling";
  options.temperature = 5;
  const auto plan = make_plan(config, options, &scores);
  EXPECT_EQ(plan, make_plan(config, options, &scores));
  options.seed = 1;
  EXPECT_NE(plan.layers, make_plan(config, options, &scores).layers);
}

// num_hidden_layers = first_k_dense_replace: what experts there are lie in layers for multi-token prediction.
TEST(MakePlan, RefusesAModelWithoutALayerOfExperts) {
  for (const char* family : {"glm4_moe", "deepseek_v3"}) {
    models::ModelSizes sizes{.family = family, .num_kv_heads = 4};
    Json json = models::make_config(sizes, io::Dtype::kF32);
    json["first_k_dense_replace"] = json.at("num_hidden_layers");
    const auto config = families::read_config(json, "test");
    testing::expect_error(ErrorCode::kUnsupported, {"all of its 2 layers are dense"},
                          [&] { (void)make_plan(config, {.experts = {"2x"}}, nullptr); });
    testing::expect_error(ErrorCode::kUnsupported, {"all of its 2 layers are dense"},
                          [&] { (void)make_plan(config, {.split = 2}, nullptr); });
  }
}

}  // namespace
}  // namespace coppice::plan
