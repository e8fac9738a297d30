#include <gtest/gtest.h>

#include <limits>

#include "coppice/plan/plan.h"
#include "coppice/plan/text.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::plan {
namespace {

using methods::MethodChoice;
using testing::example_config;
using testing::example_plan;
using testing::example_scores;
using testing::expect_error;

GrowthPlan reread(const GrowthPlan& plan) {
  return GrowthPlan::from_json(Json::parse(plan.to_json().dump(2), "plan.json"), "plan.json");
}

TEST(PlanJson, RoundTripsExactly) {
  const auto config = example_config("glm4_moe");
  const auto scores = example_scores(config);
  for (const char* experts : {"9", "2x", "5x"}) {
    for (const char* select : {"uniform", "greedy", "weighted_sampling", "proportional", "waterfill"}) {
      for (const char* order : {"append", "siblings"}) {
        GrowthOptions options;
        options.experts = ExpertCount::from_text(experts);
        options.select = select;
        options.order = order;
        options.expert_init = MethodChoice::from_text("copy_noise:lambda=0.3");
        options.router_init = MethodChoice::from_text("bias_only:delta=1e-4,gaussian=1");
        options.optimizer_state = MethodChoice::from_text("scale:factor=0.25");
        options.balance_bias = "zero";
        options.seed = 12345;
        const auto plan = make_plan(config, options, &scores);
        EXPECT_EQ(reread(plan), plan);
      }
    }
  }
}

TEST(PlanJson, KeepsMethodsOfLayersAndFactors) {
  const auto config = example_config("glm4_moe");
  auto options = GrowthOptions{.scale_top_k = true};
  auto plan = make_plan(config, options, nullptr);
  EXPECT_EQ(plan.top_k_factor, 2);
  plan.layers[1].expert_init = MethodChoice::from_text("drop_units:ratio=0.25");
  plan.layers[2].router_init = MethodChoice::from_text("copy");
  EXPECT_EQ(reread(plan), plan);
  const auto split = make_plan(config, GrowthOptions{.split = 2}, nullptr);
  EXPECT_EQ(split.split, 2);
  EXPECT_EQ(split.down_factor, 2);
  auto again = reread(split);
  EXPECT_EQ(again.down_factor, 1) << "no file holds what follows from the model";
  set_factors(config, again);
  EXPECT_EQ(again, split);
}

// As a user would edit it: any order of children, the first of a parent is the original; layers as TOML sorts them.
TEST(PlanToml, IsReadAsEdited) {
  const testing::TempDir dir;
  auto plan = make_plan(example_config("mixtral", {.num_experts = 2, .top_k = 1}), GrowthOptions{}, nullptr);
  plan.layers.push_back({.layer = 10, .children = plan.layers[0].children});  // after 1 as a number, before it as text
  testing::write_text(dir / "plan.toml", plan_toml(plan));
  EXPECT_EQ(GrowthPlan::read(dir / "plan.toml"), plan);
  std::string text = plan_toml(plan);
  const std::string row = "1 = [0, 1, 0, 1]";
  ASSERT_NE(text.find(row), std::string::npos) << text;
  text.replace(text.find(row), row.size(), "1 = [1, 0, 1, 1]");
  text += "\n[layer_methods.2]\nexpert_init = \"copy_noise:lambda=0.5\"\n";
  testing::write_text(dir / "plan.toml", text);
  const auto edited = GrowthPlan::read(dir / "plan.toml");
  EXPECT_EQ(edited.layer(1).children, (std::vector<methods::Child>{{1, 0}, {0, 0}, {1, 1}, {1, 2}}));
  EXPECT_EQ(edited.expert_init_of(2).to_text(), "copy_noise:lambda=0.5");
  EXPECT_EQ(edited.expert_init_of(1).name, "copy");
  expect_error(ErrorCode::kFormat, {"plan.toml", "line 1"}, [&] {
    testing::write_text(dir / "plan.toml", "coppice_plan = = 1");
    (void)GrowthPlan::read(dir / "plan.toml");
  });
}

TEST(PlanJson, KeepsSeedsBeyondTheIntegersOfJson) {
  auto plan = example_plan(2, 2, {"copy", {}});
  for (const uint64_t seed :
       {uint64_t{0}, uint64_t{1} << 62, uint64_t{1} << 63, std::numeric_limits<uint64_t>::max()}) {
    plan.seed = seed;
    EXPECT_EQ(reread(plan).seed, seed);
  }
}

// Each edit damages a good plan of 3 experts doubled in layer 5; the error must name the file and the place.
TEST(PlanJson, RefusesDamagedFiles) {
  const Json good = example_plan(3, 2, {"copy", {}}).to_json();
  using Edit = void (*)(Json&);
  struct Damage {
    const char* place;
    Edit edit;
  };
  const Damage damages[] = {
      {"coppice_plan", [](Json& j) { j.erase("coppice_plan"); }},
      {"coppice_plan", [](Json& j) { j["coppice_plan"] = Json(9); }},
      {"seed", [](Json& j) { j.erase("seed"); }},
      {"seed", [](Json& j) { j["seed"] = Json(-1); }},
      {"seed", [](Json& j) { j["seed"] = Json(1.5); }},
      {"seed", [](Json& j) { j["seed"] = Json("18446744073709551616"); }},
      {"seed", [](Json& j) { j["seed"] = Json("12a"); }},
      {"seed", [](Json& j) { j["seed"] = Json(""); }},
      {"experts", [](Json& j) { j["experts"] = Json::array({Json(3)}); }},
      {"experts", [](Json& j) { j["experts"] = Json::array({Json(6), Json(6)}); }},
      {"experts", [](Json& j) { j["experts"] = Json::array({Json(0), Json(6)}); }},
      {"experts", [](Json& j) { j["experts"] = Json::array({Json(3), Json(int64_t{1} << 40)}); }},
      {"layer 5 has 6 experts; wanted 7", [](Json& j) { j["experts"] = Json::array({Json(3), Json(7)}); }},
      {"order", [](Json& j) { j["order"] = Json(1); }},
      {"select", [](Json& j) { j.erase("select"); }},
      {"methods", [](Json& j) { j.erase("methods"); }},
      {"router_init", [](Json& j) { j["methods"].erase("router_init"); }},
      {"balance_bias", [](Json& j) { j["methods"]["balance_bias"] = Json(); }},
      {"parents", [](Json& j) { j["parents"] = Json::array(); }},
      {"no layer", [](Json& j) { j["parents"] = Json::object(); }},
      {"'copies'", [](Json& j) { j["copies"] = Json::object(); }},
      {"'methods'", [](Json& j) { j["method"] = Json::object(); }},  // the nearest
      {"'router-init'", [](Json& j) { j["methods"]["router-init"] = Json("copy"); }},
      {"layer 4 has no parents", [](Json& j) { j["layer_methods"]["4"]["expert_init"] = Json("copy"); }},
      {"'balance_bias'", [](Json& j) { j["layer_methods"]["5"]["balance_bias"] = Json("copy"); }},
      {"top_k_factor", [](Json& j) { j["top_k_factor"] = Json(0); }},
      {"'down_factor': is computed", [](Json& j) { j["down_factor"] = Json(2.0); }},
      {"'down_bias_factor': is computed", [](Json& j) { j["down_bias_factor"] = Json(1.0); }},
      {"'selection_bias_factor': is computed", [](Json& j) { j["selection_bias_factor"] = Json(7.5); }},
      {"split", [](Json& j) { j["split"] = Json(int64_t{1} << 50); }},
      {"'70000'", [](Json& j) { j["parents"]["70000"] = Json(j["parents"]["5"]); }},
      {"has 7 experts", [](Json& j) { j["parents"]["5"].push_back(Json(0)); }},
      {"layer 5, expert 5: is 3, not in [0, 2]",
       [](Json& j) { j["parents"]["5"] = Json::array_of(std::vector<int>{0, 1, 2, 0, 1, 3}); }},
      {"is -1", [](Json& j) { j["parents"]["5"] = Json::array_of(std::vector<int>{0, 1, 2, 0, 1, -1}); }},
      {"is not an integer", [](Json& j) { j["parents"]["5"] = Json::array_of(std::vector<double>(6, 0.5)); }},
      {"layer 5: the original of expert 2 is missing",
       [](Json& j) { j["parents"]["5"] = Json::array_of(std::vector<int>{0, 1, 1, 0, 1, 1}); }},
  };
  for (const Damage& damage : damages) {
    SCOPED_TRACE(damage.place);
    Json bad = good;
    damage.edit(bad);
    expect_error(ErrorCode::kFormat, {"plan.json", damage.place},
                 [&] { (void)GrowthPlan::from_json(bad, "plan.json"); });
  }
  EXPECT_NO_THROW(GrowthPlan::from_json(good, "plan.json"));
}

TEST(PlanJson, RefusesUnknownNames) {
  const Json good = example_plan(3, 2, {"copy", {}}).to_json();
  const auto refused = [&](const char* text, auto edit) {
    SCOPED_TRACE(text);
    Json bad = good;
    edit(bad);
    expect_error(ErrorCode::kUsage, {text}, [&] { (void)GrowthPlan::from_json(bad, "plan.json"); });
  };
  refused("'sideways'", [](Json& j) { j["order"] = Json("sideways"); });
  refused("'clone'", [](Json& j) { j["methods"]["expert_init"] = Json("clone"); });
  refused("'lambda'", [](Json& j) { j["methods"]["router_init"] = Json("copy_noise:lambda=-4"); });
  refused("'half'", [](Json& j) { j["methods"]["optimizer_state"] = Json("half"); });
  refused("'one'", [](Json& j) { j["methods"]["balance_bias"] = Json("one"); });
}

}  // namespace
}  // namespace coppice::plan
