#include "coppice/convert/convert_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/convert/summary.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::convert {
namespace {

using testing::expect_error;
using testing::TempDir;

ConvertOptions parsed(std::vector<std::string_view> args) {
  args.insert(args.begin(), {"in", "out"});
  return parse<ConvertOptions>("convert", "", args);
}

Json record_of(std::vector<std::string_view> args, const families::Model& model) {
  const ConvertOptions o = with_recipe(parsed(std::move(args)));
  const ConversionPlan plan = make_conversion_plan(model.config, 1, conversion_options(o, nullptr));
  return settings_record(o, &plan, plan.to);
}

TEST(ConvertOptionsTest, AreRecordedByTheirMeaningNotTheirSpelling) {
  const TempDir dir;
  const auto model = families::open_model(testing::tiny_model(dir / "m", "llama", {.sizes = {.dense_width = 48}}));
  const Json plain = record_of({}, model);
  EXPECT_EQ(record_of({"--experts", "8", "--top-k", "2", "--seed", "0", "--scale", "cbrt"}, model), plain);
  EXPECT_EQ(record_of({"--every", "1", "--threads", "1"}, model), plain);
  EXPECT_NE(record_of({"--seed", "1"}, model), plain);
  EXPECT_NE(record_of({"--top-k", "1"}, model), plain);
  EXPECT_EQ(plain.find("recipe"), nullptr);
  EXPECT_EQ(plain.at("layers").items().size(), static_cast<size_t>(model.config.num_layers));
}

TEST(ConvertOptionsTest, GivenOnesOverrideTheRecipe) {
  ConvertOptions o = parsed({"--recipe", "drop_upcycling", "--scale", "none"});
  const ConvertOptions made = with_recipe(o);
  EXPECT_EQ(made.scale, "none");
  EXPECT_TRUE(made.expert_init && made.expert_init->name != "copy");
  o.expert_init = methods::MethodChoice{"copy", {}};
  EXPECT_EQ(with_recipe(o).expert_init->name, "copy");
}

TEST(ConvertOptionsTest, AreRefusedWhereTheyHaveNoEffect) {
  expect_error(ErrorCode::kUsage, {"--trunk", "only one MODEL"}, [] { check_effects(parsed({"--trunk", "first"})); });
  expect_error(ErrorCode::kUsage, {"--no-virtual-group", "granularity 1"},
               [] { check_effects(parsed({"--no-virtual-group"})); });
  for (const char* option : {"--experts", "--top-k", "--seed"}) {
    expect_error(ErrorCode::kUsage, {option, "makes no experts"},
                 [&] { check_effects(parsed({"--dense-average", option, "1"})); });
  }
  EXPECT_NO_THROW(check_effects(parsed({"--dense-average", "--to", "llama", "--lossy"})));
}

TEST(ConversionSummary, CountsTheModelThatIsWritten) {
  const TempDir dir;
  std::vector<families::Model> parents;
  parents.push_back(families::open_model(testing::tiny_model(dir / "m", "llama", {.sizes = {.dense_width = 48}})));
  const auto plan = make_conversion_plan(parents.front().config, 1, {.experts = 4, .top_k = 2});
  Conversion conversion(parents, plan, nullptr);
  const ConversionSummary said = summary(conversion, parents.front(), plan);
  (void)convert(conversion, {.out = dir / "out"});
  const auto after = families::open_model(dir / "out");
  const auto counted = families::count_parameters(after);
  EXPECT_EQ(said.after.total, counted.total);
  EXPECT_EQ(said.after.active, counted.active);
  EXPECT_EQ(said.experts, after.config.num_experts);
  EXPECT_EQ(said.to, after.config.family->model_type);
  EXPECT_THAT(said.to_text(), ::testing::HasSubstr(said.exactness.reason));
}

}  // namespace
}  // namespace coppice::convert
