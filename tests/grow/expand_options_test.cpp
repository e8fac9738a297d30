#include "coppice/grow/expand_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/grow/expand.h"
#include "coppice/grow/summary.h"
#include "coppice/plan/text.h"
#include "coppice/plan/utility.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::grow {
namespace {

using testing::expect_error;
using testing::TempDir;

class ExpandOptionsTest : public ::testing::Test {
 protected:
  families::Model model(std::string_view family = "mixtral") {
    return families::open_model(testing::tiny_model(dir_ / cat("m", ++count_), family));
  }
  /// The options of a command line, without MODEL and OUT.
  static ExpandOptions parsed(std::vector<std::string_view> args) {
    args.insert(args.begin(), {"in", "out"});
    return parse<ExpandOptions>("expand", "", args);
  }
  static Json record_of(std::vector<std::string_view> args, const families::Model& model) {
    const ExpandOptions o = with_recipe(parsed(std::move(args)), model);
    return settings_record(o, requested_plan(o, model));
  }

  TempDir dir_;
  int count_ = 0;
};

TEST_F(ExpandOptionsTest, AreRecordedByTheirMeaningNotTheirSpelling) {
  const families::Model m = model();  // 4 experts
  const Json plain = record_of({}, m);
  EXPECT_EQ(record_of({"--experts", "2x"}, m), plain);
  EXPECT_EQ(record_of({"--experts", "8", "--threads", "1", "--select", "uniform"}, m), plain);
  EXPECT_EQ(record_of({"--top-k", "keep", "--seed", "0", "--max-shard-bytes", "5000000000"}, m), plain);
  EXPECT_EQ(plain.at("experts").as_string(), "8");
  EXPECT_NE(record_of({"--seed", "1"}, m), plain);
  EXPECT_NE(record_of({"--expert-init", "copy_noise"}, m), plain);
  EXPECT_NE(record_of({"--max-shard-bytes", "1GB"}, m), plain);
}

TEST_F(ExpandOptionsTest, RecordWhatARecipeSetAndNotItsName) {
  const families::Model m = model();
  const Json record = record_of({"--recipe", "paper", "--select", "uniform"}, m);
  EXPECT_EQ(record.find("recipe"), nullptr);
  EXPECT_NE(record.find("expert-init"), nullptr);
}

TEST_F(ExpandOptionsTest, MakeNoPlanWhereOneIsGiven) {
  const families::Model m = model();
  const plan::GrowthPlan first = requested_plan(parsed({"--experts", "6"}), m);
  testing::write_text(dir_ / "plan.toml", plan::plan_toml(first));
  const std::string file = (dir_ / "plan.toml").string();
  ExpandOptions o = parsed({"--plan", file});
  EXPECT_EQ(requested_plan(o, m), first);
  for (const char* option : {"--experts", "--select", "--seed"}) {
    o = parsed({"--plan", file, option, "1"});
    expect_error(ErrorCode::kUsage, {option, "the plan file decides it"}, [&] { (void)requested_plan(o, m); });
  }
  o = parsed({"--plan", file, "--allow-regroup"});
  expect_error(ErrorCode::kUsage, {"--allow-regroup", "no router groups"}, [&] { (void)requested_plan(o, m); });
}

TEST_F(ExpandOptionsTest, AreRefusedWhereTheyHaveNoEffect) {
  const families::Model m = model();
  for (const auto& [option, value] : {std::pair{"--metric", "gradient_squared"},
                                      {"--temperature", "2"},
                                      {"--max-duplicates", "3"},
                                      {"--balance-bias", "copy"},
                                      {"--optimizer-state", "reset"}}) {
    const ExpandOptions o = parsed({option, value});
    const plan::GrowthPlan plan = requested_plan(o, m);
    expect_error(ErrorCode::kUsage, {option, "has no effect"}, [&] { check_effects(o, m.config, plan, false); });
  }
  for (const char* parts : {"0", "1", "2000000"}) {
    expect_error(ErrorCode::kUsage, {"--split", parts}, [&] { (void)requested_plan(parsed({"--split", parts}), m); });
  }
  expect_error(ErrorCode::kUsage, {"--top-k", "scale"}, [&] { (void)requested_plan(parsed({"--top-k", "scael"}), m); });
}

TEST_F(ExpandOptionsTest, ScoresMustBeOfTheModel) {
  const families::Model m = model();
  plan::Scores other;
  other.model_digest = std::string(64, 'a');
  other.model_type = "mixtral";
  other.layers = 1;
  other.experts = 4;
  other.tokens_digest = std::string(64, 'b');
  other.tokens_seen = other.batch_tokens = other.batches = 1;
  other.metrics["gradient_squared"].fc1.sum[0] = {1, 2, 3, 4};
  other.metrics["gradient_squared"].fc2.sum[0] = {1, 2, 3, 4};
  testing::write_text(dir_ / "scores.json", other.to_json().dump());
  const ExpandOptions o = parsed({"--scores", (dir_ / "scores.json").string()});
  expect_error(ErrorCode::kFormat, {"scores.json", "another model", "aaaaaaaaaaaa"},
               [&] { (void)requested_plan(o, m); });
}

TEST(ExpansionSummary, CountsWhatIsWritten) {
  const TempDir dir;
  for (const char* family : {"mixtral", "deepseek_v3", "gpt_oss"}) {
    SCOPED_TRACE(family);
    const auto before = families::open_model(testing::tiny_model(dir / family, family));
    for (const char* count : {"2x", "6"}) {
      const plan::GrowthPlan plan =
          plan::make_plan(before.config, {.experts = plan::ExpertCount::from_text(count)}, nullptr);
      const ExpansionSummary said = summary(before, plan);
      const auto out = dir / cat(family, "-", count);
      (void)expand(before, plan, {.out = out});
      const auto after = families::open_model(out);
      const auto counted = families::count_parameters(after);
      EXPECT_EQ(said.parameters_after.total, counted.total);
      EXPECT_EQ(said.parameters_after.experts, counted.experts);
      EXPECT_EQ(said.parameters_after.active, counted.active);
      EXPECT_EQ(said.parameters_before.total, families::count_parameters(before).total);
      EXPECT_EQ(said.bytes.weights_after, after.checkpoint.total_bytes());
      EXPECT_EQ(said.top_k_after, after.config.top_k_text());
      const Json json = said.to_json();
      EXPECT_EQ(json.at("experts").items().back().as_int(), after.config.num_experts);
      EXPECT_THAT(summary_text(said, before, plan), ::testing::HasSubstr(cat("-> ", after.config.num_experts)));
    }
  }
}

}  // namespace
}  // namespace coppice::grow
