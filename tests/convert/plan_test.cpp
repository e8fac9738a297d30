#include "coppice/convert/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/convert/families.h"
#include "tests/testing/convert_examples.h"
#include "tests/testing/errors.h"

namespace coppice::convert {
namespace {

using methods::Child;
using testing::conversion;
using testing::dense_config;
using ::testing::ElementsAre;
using testing::expect_error;

std::vector<uint32_t> parents_of(const methods::LayerPlan& layer) {
  std::vector<uint32_t> parents;
  for (const Child& child : layer.children) parents.push_back(child.parent);
  return parents;
}

TEST(ConversionPlanMake, RepeatsTheSlicesGroupByGroup) {
  const auto plan = make_conversion_plan(dense_config(), 1, conversion("mixtral", 9, 3, 3));
  ASSERT_EQ(plan.layers.size(), 4u);
  EXPECT_THAT(parents_of(plan.layers[2]), ElementsAre(0, 1, 2, 0, 1, 2, 0, 1, 2));
  EXPECT_EQ(plan.layers[2].children[7], (Child{.parent = 1, .copy = 2}));
  EXPECT_EQ(plan.slices(), 3);
}

TEST(ConversionPlanMake, GivesGroupsToTheParentsInTurn) {
  const auto plan = make_conversion_plan(dense_config(), 2, conversion("mixtral", 6, 2, 2));
  EXPECT_THAT(parents_of(plan.layers[0]), ElementsAre(0, 1, 2, 3, 0, 1));
  EXPECT_EQ(plan.layers[0].children[4], (Child{.parent = 0, .copy = 1}));
  EXPECT_EQ(plan.slices(), 4);
}

TEST(ConversionPlanMake, HasDefaultsThatFollowTheGranularity) {
  ConversionOptions options;
  options.granularity = 4;
  const auto plan = make_conversion_plan(dense_config("qwen3"), 1, options);
  EXPECT_EQ(plan.to, "qwen3_moe");
  EXPECT_EQ(plan.experts, 32);
  EXPECT_EQ(plan.top_k, 8);
  EXPECT_EQ(plan.routing, "softmax_topk");  // what an absent norm_topk_prob means
}

TEST(ConversionPlanMake, ChoosesEveryKthLayerOrThoseNamed) {
  auto options = conversion("qwen3_moe", 4, 2, 1);
  options.every = 2;
  const auto every = make_conversion_plan(dense_config("qwen3"), 1, options);
  EXPECT_NE(every.find_layer(1), nullptr);
  EXPECT_EQ(every.find_layer(2), nullptr);
  options.every.reset();
  options.layers = {3, 0, 3};
  const auto named = make_conversion_plan(dense_config("qwen3"), 1, options);
  ASSERT_EQ(named.layers.size(), 2u);
  EXPECT_EQ(named.layers[0].layer, 0);
  EXPECT_EQ(named.layers[1].layer, 3);
}

struct Routed {
  const char* to;
  std::optional<std::string> wanted;
  const char* routing;
  bool sum_to_one;
};

TEST(ConversionPlanMake, RoutesAsTheFamilyDoesAndAsItCan) {
  const Routed cases[] = {{"mixtral", {}, "topk_softmax", true},
                          {"granitemoe", {}, "topk_softmax", true},
                          {"granitemoe", "topk_softmax", "topk_softmax", true},
                          {"qwen2_moe", {}, "softmax_topk", false},
                          {"qwen2_moe", "topk_softmax", "topk_softmax", true},
                          {"glm4_moe", {}, "sigmoid_topk", true}};
  for (const Routed& c : cases) {
    SCOPED_TRACE(c.to);
    auto options = conversion(c.to, 8, 2, 1);
    options.routing = c.wanted;
    const auto plan = make_conversion_plan(dense_config(), 1, options);
    EXPECT_EQ(plan.routing, c.routing);
    EXPECT_EQ(gates_sum_to_one(plan), c.sum_to_one);
  }
}

TEST(ConversionPlanMake, RefusesNumbersThatDoNotFit) {
  const auto refused = [](std::initializer_list<const char*> words, ConversionOptions options, int64_t parents = 1) {
    expect_error(ErrorCode::kUsage, words, [&] { (void)make_conversion_plan(dense_config(), parents, options); });
  };
  refused({"granularity", "48", "5"}, conversion("mixtral", 10, 5, 5));
  refused({"experts", "not a multiple of the granularity, 3"}, conversion("mixtral", 8, 3, 3));
  refused({"top-k", "not a multiple of the granularity, 3"}, conversion("mixtral", 9, 2, 3));
  refused({"top-k", "1 to 9"}, conversion("mixtral", 9, 12, 3));
  refused({"experts", "too few for 4 models"}, conversion("mixtral", 9, 3, 3), 4);
  auto options = conversion("mixtral", 9, 2, 3);
  options.virtual_groups = false;
  EXPECT_EQ(make_conversion_plan(dense_config(), 1, options).top_k, 2);
}

TEST(ConversionPlanMake, RefusesDenseFamiliesThatItDoesNotKnow) {
  models::ModelSizes sizes;
  sizes.family = "olmoe";
  const auto moe = families::read_config(models::make_config(sizes, io::Dtype::kF32), "example");
  expect_error(ErrorCode::kUnsupported, {"olmoe has experts already", "coppice expand"},
               [&] { (void)make_conversion_plan(moe, 1, ConversionOptions{}); });
}

TEST(ConversionPlanJson, ReadsBackWhatItWrote) {
  auto options = conversion("qwen2_moe", 12, 4, 2);
  options.every = 2;
  options.shared_width = 16;
  options.expert_init = methods::MethodChoice::from_text("copy_noise:lambda=0.25");
  options.init_all = true;
  options.router = methods::MethodChoice::from_text("random:std=0.5");
  options.seed = ~uint64_t{0};
  options.trunk = "first";
  options.lossy = true;
  const auto plan = make_conversion_plan(dense_config(), 3, options);
  const Json json = Json::parse(plan.to_json().dump(), "text");
  EXPECT_EQ(ConversionPlan::from_json(json, "plan"), plan);
}

TEST(ConversionPlanJson, NamesWhatIsWrong) {
  const Json good = make_conversion_plan(dense_config(), 1, conversion("mixtral", 4, 2, 2)).to_json();
  const auto refused = [&](std::initializer_list<const char*> words, const char* key, Json value) {
    Json json = good;
    json[key] = std::move(value);
    expect_error(ErrorCode::kFormat, words, [&] { (void)ConversionPlan::from_json(json, "coppice.json"); });
  };
  refused({"coppice.json", "top_k", "5"}, "top_k", Json(5));
  refused({"coppice.json", "virtual_groups", "7"}, "virtual_groups", Json(7));
  refused({"granularity"}, "granularity", Json(3));
  refused({"'extra'"}, "extra", Json(1));
  refused({"layers", "is empty"}, "layers", Json::object());
  refused({"layer 0 has 1 experts; wanted 4"}, "layers", Json::object({{"0", Json::array({Json(0)})}}));
  Json json = good;
  (void)json.erase("scale");
  expect_error(ErrorCode::kFormat, {"scale", "missing"}, [&] { (void)ConversionPlan::from_json(json, "plan"); });
}

TEST(ConversionPlanCheck, HoldsAPlanOfAnyOriginToTheModel) {
  const auto config = dense_config();
  const auto plan = make_conversion_plan(config, 1, conversion("mixtral", 4, 2, 2));
  check_conversion_plan(config, plan);
  const auto refused = [&](std::initializer_list<const char*> words, auto change) {
    ConversionPlan changed = plan;
    change(changed);
    expect_error(ErrorCode::kUsage, words, [&] { check_conversion_plan(config, changed); });
  };
  refused({"from", "qwen3"}, [](ConversionPlan& p) { p.from = "qwen3"; });
  refused({"layers"}, [](ConversionPlan& p) { p.layers.back().layer = 4; });
  refused({"layers"}, [](ConversionPlan& p) { std::swap(p.layers[0], p.layers[1]); });
  refused({"every layer of mixtral"}, [](ConversionPlan& p) { p.layers.pop_back(); });
  refused({"routing"}, [](ConversionPlan& p) { p.routing = "softmax_topk"; });
  refused({"trunk", "'middle'"}, [](ConversionPlan& p) { p.trunk = "middle"; });
}

TEST(MoeFamilies, HaveAWholeTableEach) {
  for (const MoeFamily& row : moe_families()) {
    const families::Family& family = families::family_of(row.model_type);
    EXPECT_FALSE(family.surgery_only) << row.model_type;
    EXPECT_TRUE(family.has_moe()) << row.model_type;
    EXPECT_FALSE(families::family_of(row.to).has_moe()) << row.to;
  }
  for (const DenseFamily& row : dense_families()) EXPECT_EQ(moe_family(row.to).model_type, row.to);
}

}  // namespace
}  // namespace coppice::convert
