#include "coppice/plan/lineage.h"

#include <gtest/gtest.h>

#include "coppice/plan/recorded_growth.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::plan {
namespace {

using testing::expect_error;
using testing::TempDir;

GrowthPlan small_plan() {
  GrowthPlan plan;
  plan.seed = 7;
  plan.experts_before = 2;
  plan.experts_after = 3;
  plan.layers = {{1, {{0, 0}, {1, 0}, {1, 1}}}, {4, {{0, 0}, {1, 0}, {0, 1}}}};
  return plan;
}

TEST(ExtendLineage, StartsOneWithTheKeysOfItsSchema) {
  const Json lineage = extend_lineage(std::nullopt, small_plan(), "expand", "abc");
  EXPECT_EQ(lineage.members().front().first, "coppice_lineage");
  const Json& step = lineage.at("steps").items().at(0);
  std::vector<std::string> keys;
  for (const auto& [key, value] : step.members()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"command", "version", "seed", "source_digest", "experts", "order",
                                            "methods", "parents"}));
  EXPECT_EQ(step.at("parents").dump(), R"({"1": [0, 1, 1], "4": [0, 1, 0]})");
  EXPECT_EQ(step.at("seed").as_int(), 7);
}

TEST(ExtendLineage, KeepsEarlierStepsAsTheyWere) {
  const Json first = extend_lineage(std::nullopt, small_plan(), "expand", "abc");
  GrowthPlan next = small_plan();
  next.experts_before = 3;
  next.experts_after = 4;
  next.layers = {{1, {{0, 0}, {1, 0}, {2, 0}, {2, 1}}}};
  const Json second = extend_lineage(first, next, "train", "def", Json::object({{"experts", Json("4")}}));
  EXPECT_EQ(second.at("steps").items()[0], first.at("steps").items()[0]);
  EXPECT_EQ(second.at("steps").items()[1].at("settings").dump(), R"({"experts": "4"})");
  EXPECT_EQ(newest_parents(second)->at(1), (std::vector<uint32_t>{0, 1, 2, 2}));
}

TEST(ReadLineage, ReadsWhatWasWritten) {
  const TempDir dir;
  EXPECT_EQ(read_lineage(dir.path()), std::nullopt);
  const Json lineage = extend_lineage(std::nullopt, small_plan(), "expand", "abc");
  testing::write_text(dir / io::kLineageFile, lineage.dump());
  EXPECT_EQ(read_lineage(dir.path()), lineage);
}

TEST(NewestGrowth, HoldsAllThatMakesItAgain) {
  GrowthPlan plan = small_plan();
  plan.seed = ~uint64_t{0};
  plan.order = Order::kSiblings;
  plan.expert_init = methods::MethodChoice::from_text("copy_noise:lambda=0.5");
  plan.router_init = {"perturb_new_only", {}};
  plan.layers[1].expert_init = methods::MethodChoice{"drop_units", {}};
  const Json lineage = extend_lineage(std::nullopt, plan, "train", "abc");
  const auto growth = newest_growth(Json::parse(lineage.dump(), "test"));
  ASSERT_TRUE(growth);
  EXPECT_EQ(growth->command, "train");
  EXPECT_EQ(growth->source_digest, "abc");
  EXPECT_EQ(growth->plan.seed, plan.seed);
  EXPECT_EQ(growth->plan.order, plan.order);
  EXPECT_EQ(growth->plan.layers[0], plan.layers[0]);
  EXPECT_EQ(growth->plan.layers[1].children, plan.layers[1].children);
  EXPECT_EQ(growth->plan.layers[1].expert_init->to_text(), "drop_units:ratio=0.5");  // as this version has it
  EXPECT_EQ(growth->plan.expert_init, plan.expert_init);
  EXPECT_EQ(growth->plan.router_init.to_text(), "perturb_new_only:lambda=0.02");
}

TEST(ExtendLineage, RecordsWhatMethodsMeanAndNotHowTheyWereSpelled) {
  GrowthPlan plain = small_plan(), spelled = small_plan();
  plain.expert_init = {"drop_units", {}};
  spelled.expert_init = methods::MethodChoice::from_text("drop_units:ratio=0.5");
  spelled.layers[1].expert_init = spelled.expert_init;
  spelled.layers[0].router_init = methods::MethodChoice{"copy", {}};
  const Json lineage = extend_lineage(std::nullopt, plain, "expand", "abc");
  EXPECT_EQ(lineage, extend_lineage(std::nullopt, spelled, "expand", "abc"));
  const Json& methods = lineage.at("steps").items()[0].at("methods");
  EXPECT_EQ(methods.at("expert_init").as_string(), "drop_units:ratio=0.5");
  EXPECT_EQ(methods.find("layers"), nullptr);
  EXPECT_EQ(canonical(plain), canonical(spelled));
  EXPECT_EQ(canonical(canonical(plain)), canonical(plain));
}

// A version before this one wrote methods as they were given, and their parameters beside them.
TEST(NewestGrowth, ReadsParametersBesideMethods) {
  Json lineage = extend_lineage(std::nullopt, small_plan(), "expand", "abc");
  Json step = lineage.at("steps").items()[0];
  step["methods"]["expert_init"] = "drop_units";
  step["methods"]["layers"]["4"]["expert_init"] = "copy_noise";
  step["methods"]["parameters"] =
      Json::parse(R"({"expert_init": {"ratio": 0.25}, "layers": {"4": {"expert_init": {"lambda": 0.5}}}})", "test");
  lineage["steps"] = Json::array({step});
  const auto growth = newest_growth(lineage);
  EXPECT_EQ(growth->plan.expert_init.to_text(), "drop_units:ratio=0.25");
  EXPECT_EQ(growth->plan.layers[1].expert_init->to_text(), "copy_noise:lambda=0.5");
}

// What 0.1.0 wrote has the parameters that were given, and no others.
TEST(NewestGrowth, ReadsALineageWithoutParameters) {
  const Json lineage = Json::parse(
      R"({"coppice_lineage": 1, "steps": [{"command": "expand", "version": "0.1.0", "seed": 18446744073709551615,)"
      R"( "source_digest": "d", "experts": [2, 3], "order": "append", "methods": {"select": "uniform",)"
      R"( "expert_init": "copy_noise:lambda=0.02", "router_init": "copy", "balance_bias": "copy",)"
      R"( "optimizer_state": "copy"}, "parents": {"1": [0, 1, 1]}}]})",
      "test");
  const auto growth = newest_growth(lineage);
  EXPECT_EQ(growth->plan.seed, ~uint64_t{0});
  EXPECT_EQ(growth->plan.expert_init.to_text(), "copy_noise:lambda=0.02");
  EXPECT_EQ(growth->plan.layers[0].children, (std::vector<methods::Child>{{0, 0}, {1, 0}, {1, 1}}));
}

TEST(NewestGrowth, RejectsMethodsThatAreNone) {
  for (const char* text : {R"("no_such_method")", R"("copy_noise:lambda=11")", R"("copy_noise:other=1")", "7"}) {
    Json lineage = extend_lineage(std::nullopt, small_plan(), "expand", "abc");
    Json step = lineage.at("steps").items()[0];
    step["methods"]["expert_init"] = Json::parse(text, "test");
    lineage["steps"] = Json::array({step});
    expect_error(ErrorCode::kFormat, {io::kLineageFile}, [&] { (void)newest_growth(lineage); });
  }
}

TEST(NewestParents, AreNoneWithoutSteps) {
  EXPECT_EQ(newest_parents(Json::parse(R"({"coppice_lineage": 1, "steps": []})", "test")), std::nullopt);
}

// A lineage file comes from wherever the model comes from; none of these may crash or be taken for a lineage.
TEST(ReadLineage, RejectsHostileFiles) {
  const TempDir dir;
  const std::string step_head =
      R"("command": "expand", "version": "1", "seed": 0, "source_digest": "", "order": "append", "methods": {}, )";
  const auto lineage = [&](const std::string& rest) {
    return R"({"coppice_lineage": 1, "steps": [{)" + step_head + rest + "}]}";
  };
  const std::string hostile[] = {"",
                                 "[]",
                                 "{}",
                                 "{\"coppice_lineage\": 2, \"steps\": []}",
                                 "{\"coppice_lineage\": \"1\", \"steps\": []}",
                                 R"({"coppice_lineage": 1})",
                                 R"({"coppice_lineage": 1, "steps": {}})",
                                 R"({"coppice_lineage": 1, "steps": [7]})",
                                 R"({"coppice_lineage": 1, "steps": [{}]})",
                                 lineage(R"("experts": [2, 3])"),
                                 lineage(R"("experts": [2], "parents": {})"),
                                 lineage(R"("experts": [3, 2], "parents": {})"),
                                 lineage(R"("experts": [-1, 2], "parents": {})"),
                                 lineage(R"("experts": [2, 9223372036854775807], "parents": {})"),
                                 lineage(R"("experts": [2, 3], "parents": {"1": [0, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"1": [0, 1, 2]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"1": [0, 1, -1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"1": [0, 1, 0.5]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"-1": [0, 1, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"1 ": [0, 1, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"99999999999999999999": [0, 1, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": [])"),
                                 lineage(R"("experts": [2, 3], "parents": {})"),
                                 lineage(R"("experts": [2, 3], "parents": {"1": [0, 0, 0]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"01": [0, 1, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"0": [0, 1, 1], "00": [0, 1, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"65536": [0, 1, 1]})"),
                                 lineage(R"("experts": [2, 3], "parents": {"+1": [0, 1, 1]})"),
                                 std::string(100, '[')};
  for (const std::string& text : hostile) {
    SCOPED_TRACE(text);
    testing::write_text(dir / io::kLineageFile, text);
    expect_error(ErrorCode::kFormat, {io::kLineageFile}, [&] { (void)read_lineage(dir.path()); });
  }
}

TEST(LineageShareNote, ComesBackAsItWasWritten) {
  const Json empty = Json::parse(R"({"coppice_lineage": 1, "steps": []})", "test");
  for (const uint64_t seed : {uint64_t{0}, uint64_t{7}, ~uint64_t{0}}) {
    const Json noted = Json::parse(with_lineage_share(empty, {0.7, seed, 30}).dump(), "test");
    const auto found = noted_lineage_share(noted);
    EXPECT_EQ(found.share, 0.7);
    EXPECT_EQ(found.seed, seed);
    EXPECT_EQ(found.steps, 30);
    EXPECT_EQ(with_lineage_share(noted, {}).dump(), empty.dump()) << "a share of 0 leaves no note";
  }
  const Json old =
      Json::parse(R"({"coppice_lineage": 1, "steps": [], "routing": "lineage_unique", "share": 0.5})", "test");
  EXPECT_EQ(noted_lineage_share(old).seed, std::nullopt);
  EXPECT_EQ(noted_lineage_share(old).steps, 0);
}

TEST(LineageShareNote, IsReplacedByTheStepOfItsEnd) {
  const Json growing = Json::parse(
      R"({"coppice_lineage": 1, "steps": [{"command": "expand"}], "routing": "lineage_unique", "share": 0.5})", "test");
  EXPECT_EQ(released_at(growing), std::nullopt);
  const Json over = with_release_over(growing, 40);
  EXPECT_EQ(noted_lineage_share(over).share, 0);
  EXPECT_EQ(released_at(over), 40);
  EXPECT_EQ(released_at(with_release_over(over, 90)), 40) << "training on does not move it";
  EXPECT_EQ(released_at(Json::parse(R"({"coppice_lineage": 1, "steps": []})", "test")), std::nullopt);
}

TEST(LineageShareNote, RefusesWhatIsNone) {
  for (const char* note :
       {R"("share": 1.5)", R"("share": -1)", R"("share": "all")", R"("seed": 1)", R"("share": 0.5, "seed": -1)",
        R"("share": 0.5, "seed": 1.5)", R"("share": 0.5, "seed": 18446744073709551616)", R"("share": 0.5, "seed": "7")",
        R"("share": 0.5, "share_steps": -3)", R"("share": 0.5, "share_steps": 9223372036854775808)"}) {
    SCOPED_TRACE(note);
    const std::string text =
        std::string(R"({"coppice_lineage": 1, "steps": [], "routing": "lineage_unique", )") + note + "}";
    const Json lineage = Json::parse(text, "test");
    expect_error(ErrorCode::kFormat, {io::kLineageFile}, [&] { (void)noted_lineage_share(lineage); });
  }
}

}  // namespace
}  // namespace coppice::plan
