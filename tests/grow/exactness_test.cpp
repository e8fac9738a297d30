// What a verdict is made of. That verdicts are true is tests/train/exactness_test.cpp's, which runs the models.

#include "coppice/grow/exactness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/edit_tensors.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::grow {
namespace {

using methods::MethodChoice;

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TempDir;

constexpr const char* kSelectionBias = "model.layers.0.mlp.gate.e_score_correction_bias";

class Exactness : public ::testing::Test {
 protected:
  /// A model of 2 layers of 4 experts, or what `tiny` says.
  families::Model model(std::string_view family, int64_t top_k, Json config = Json::object()) {
    const fs::path path = dir_ / cat("m", ++count_);
    (void)testing::tiny_model(path, family, {.sizes = {.top_k = top_k}, .config = std::move(config)});
    return families::open_model(path);
  }
  families::Model reopened(const families::Model& model) { return families::open_model(model.checkpoint.directory()); }

  static plan::Exactness of(const families::Model& model, std::string_view router, std::string_view expert = "copy",
                            plan::GrowthOptions options = {}) {
    options.expert_init = MethodChoice::from_text(expert);
    options.router_init = MethodChoice::from_text(router);
    const auto result = growth_exactness(model, plan::make_plan(model.config, options, nullptr));
    EXPECT_TRUE(result.reason.starts_with(!result.known ? "Unknown: " : result.exact ? "Exact" : "Not exact: "));
    EXPECT_TRUE(result.reason.ends_with('.')) << result.reason;
    EXPECT_TRUE(result.known || !result.exact);
    return result;
  }

  TempDir dir_;
  int count_ = 0;
};

const Json kNotRenormalised = Json::object({{"norm_topk_prob", false}});
const Json kGroups = Json::object({{"n_group", 2}, {"topk_group", 1}});

TEST_F(Exactness, HoldsForTopOneWithGatesThatIgnoreTheNumberOfExperts) {
  for (const char* family : {"mixtral", "gpt_oss", "glm4_moe", "qwen3_moe"}) {
    EXPECT_TRUE(of(model(family, 1), "copy").exact) << family;
    EXPECT_TRUE(of(model(family, 1), "copy", "permute_units").exact) << family;
  }
  EXPECT_TRUE(of(model("glm4_moe", 1, kNotRenormalised), "copy").exact);
  EXPECT_THAT(of(model("qwen3_moe", 1, kNotRenormalised), "copy").reason, HasSubstr("divides a token's gate"));
  EXPECT_THAT(of(model("glm4_moe", 1, kGroups), "copy").reason, HasSubstr("scored by its two best"));
}

TEST_F(Exactness, SaysWhatWouldBeExactWhereMoreExpertsAnswer) {
  for (const char* family : {"mixtral", "gpt_oss", "glm4_moe", "olmoe"}) {
    const auto result = of(model(family, 2), "copy");
    EXPECT_TRUE(result.known && !result.exact);
    EXPECT_THAT(result.reason, HasSubstr("With top-4 it would be exact")) << family;
  }
  EXPECT_THAT(of(model("glm4_moe", 2, kNotRenormalised), "copy").reason,
              HasSubstr("With top-4, and routed_scaling_factor divided by 2, it would be exact"));
  EXPECT_THAT(of(model("mixtral", 2), "copy_noise").reason, Not(HasSubstr("would be exact")));
  EXPECT_THAT(of(model("mixtral", 2), "copy", "copy", {.experts = {"1.5x"}}).reason, Not(HasSubstr("would be exact")));
}

// -- copies that are never chosen ---------------------------------------------

TEST_F(Exactness, LooksAtTheBiasesAndTheNoiseOnThem) {
  const auto glm = model("glm4_moe", 2);
  EXPECT_TRUE(of(glm, "bias_only:shift=-100", "copy_noise").exact);
  const auto noisy = of(glm, "bias_only:shift=-100,delta=1000");
  EXPECT_TRUE(noisy.known && !noisy.exact) << noisy.reason;
  EXPECT_TRUE(of(glm, "bias_only:shift=-100,delta=10").exact);
  EXPECT_FALSE(of(glm, "bias_only:shift=-100,noise_to_original=1").exact);

  testing::set_values(glm.checkpoint.directory(), kSelectionBias, {0, -300, -300, -300});
  const auto spread = reopened(glm);
  const auto result = of(spread, "bias_only:shift=-100,delta=0");
  EXPECT_TRUE(result.known && !result.exact) << result.reason;  // the copy of expert 0 takes every token's second slot
  EXPECT_TRUE(of(spread, "bias_only:shift=-302").exact);
  EXPECT_TRUE(of(spread, "dormant", "copy_noise").exact);
}

// Sigmoids of small rows cannot be far apart: a smaller shift will do, down to what cannot be told any more.
TEST_F(Exactness, BoundsScoresByTheLengthOfRouterRows) {
  const auto glm = model("glm4_moe", 2);
  EXPECT_TRUE(of(glm, "bias_only:shift=-1,delta=0").exact);
  const auto unsure = of(glm, "bias_only:shift=-0.3,delta=0");
  EXPECT_FALSE(unsure.known);
  EXPECT_THAT(unsure.reason, HasSubstr("not so far that no score could make up for it"));
  EXPECT_TRUE(of(model("glm4_moe", 1), "bias_only:shift=-0.3,delta=0").exact) << "a parent outscores its copy";

  const auto gpt = model("gpt_oss", 2);
  EXPECT_TRUE(of(gpt, "bias_only:shift=-100").exact);
  EXPECT_TRUE(of(gpt, "dormant").exact);
  EXPECT_FALSE(of(gpt, "bias_only:shift=-5").known);
  testing::edit_values(gpt.checkpoint.directory(), "model.layers.1.mlp.router.weight", [](std::vector<float>& values) {
    for (float& x : values) x *= 1e5f;
  });
  const auto steep = of(reopened(gpt), "dormant");
  EXPECT_FALSE(steep.known) << "logits may be as large as the bias is deep";
  EXPECT_THAT(steep.reason, HasSubstr("layer 1"));
}

TEST_F(Exactness, OfDormantCopiesHoldsInGroupsThatKeepTheirBestTwo) {
  const auto glm = model("glm4_moe", 2, kGroups);
  EXPECT_TRUE(of(glm, "dormant", "copy_noise").exact);
  auto plan = plan::make_plan(glm.config, {.router_init = MethodChoice{"dormant", {}}}, nullptr);
  std::swap(plan.layers[0].children[0], plan.layers[0].children[6]);  // originals of one group in the other
  EXPECT_FALSE(growth_exactness(glm, plan).exact);
}

TEST_F(Exactness, OfDormantCopiesIsKeptByStoredPrecision) {
  const fs::path path = dir_ / "bf16";
  (void)testing::tiny_model(path, "minimax_m2", {.dtype = io::Dtype::kBf16});
  EXPECT_TRUE(of(families::open_model(path), "dormant").exact);
}

// -- values, not names --------------------------------------------------------

TEST_F(Exactness, LooksAtWhatMethodsReallyMake) {
  const auto mixtral = model("mixtral", 1);
  EXPECT_TRUE(of(mixtral, "copy_noise:lambda=0", "copy_noise:lambda=0").exact);
  EXPECT_TRUE(of(mixtral, "scaled_copy:factor=1", "interpolate:alpha=0").exact);
  EXPECT_THAT(of(mixtral, "copy", "copy_noise:lambda=0.001").reason, HasSubstr("copy_noise:lambda=0.001 gives"));
  EXPECT_THAT(of(mixtral, "scaled_copy:factor=0.99").reason, HasSubstr("scaled_copy:factor=0.99 moves the scores"));
  const auto glm = model("glm4_moe", 1);
  EXPECT_TRUE(of(glm, "copy", "copy", {.balance_bias = "zero"}).exact) << "they are 0";
  testing::set_values(glm.checkpoint.directory(), kSelectionBias, {0, 0, 0.5, 0});
  EXPECT_THAT(of(reopened(glm), "copy", "copy", {.balance_bias = "zero"}).reason, HasSubstr("balance bias 'zero'"));
}

TEST_F(Exactness, LooksAtEveryLayersMethods) {
  const auto mixtral = model("mixtral", 1);
  auto plan = plan::make_plan(mixtral.config, {.router_init = MethodChoice{"copy", {}}}, nullptr);
  EXPECT_TRUE(growth_exactness(mixtral, plan).exact);
  plan.layers[1].expert_init = MethodChoice{"copy_noise", {}};
  EXPECT_THAT(growth_exactness(mixtral, plan).reason, HasSubstr("in layer 1, copy_noise"));
}

TEST_F(Exactness, OfScaledTopKWantsCopiesAndWholeGroups) {
  const plan::GrowthOptions scaled{.scale_top_k = true};
  for (const char* family : {"mixtral", "olmoe", "qwen3_moe", "glm4_moe", "gpt_oss"}) {
    EXPECT_TRUE(of(model(family, 2), "copy", "copy", scaled).exact) << family;
    EXPECT_FALSE(of(model(family, 2), "copy", "copy_noise", scaled).exact) << family;
    EXPECT_FALSE(of(model(family, 2), "perturb_new_only", "copy", scaled).exact) << family;
  }
  const auto glm = model("glm4_moe", 2, kGroups);
  auto plan = plan::make_plan(glm.config, {.router_init = MethodChoice{"copy", {}}, .scale_top_k = true}, nullptr);
  EXPECT_TRUE(growth_exactness(glm, plan).exact);
  std::swap(plan.layers[0].children[4], plan.layers[0].children[6]);
  EXPECT_THAT(growth_exactness(glm, plan).reason, HasSubstr("different groups"));
}

// Experts of an earlier growth that have been trained apart while their router rows are still the same.
TEST_F(Exactness, IsNotKnownWhereDifferentExpertsTie) {
  const auto mixtral = model("mixtral", 1);
  for (const char* method : {"copy", "copy_noise"}) {
    testing::grow(mixtral.checkpoint.directory(), dir_ / method,
                  {.experts = {"2x"}, .expert_init = {method, {}}, .router_init = MethodChoice{"copy", {}}});
    const auto again = of(families::open_model(dir_ / method), "copy");
    const bool differ = std::string_view(method) == "copy_noise";
    EXPECT_EQ(again.exact, !differ);
    const std::string reason = "experts 0 and 4 of layer 0 have equal router rows";
    EXPECT_EQ(again.reason.find(reason) != std::string::npos, differ);
  }
}

TEST_F(Exactness, IsNotKnownOfAnUndo) {
  const auto glm = model("glm4_moe", 2);
  plan::GrowthPlan plan;
  plan.is_undo = true;
  EXPECT_FALSE(growth_exactness(glm, plan).known);
}

}  // namespace
}  // namespace coppice::grow
