// What a verdict is made of. That verdicts are true is tests/train/exactness_test.cpp's, which runs the models.

#include "coppice/grow/exactness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "coppice/base/text.h"
#include "coppice/grow/grown_layer_detail.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/edit_tensors.h"
#include "tests/testing/errors.h"
#include "tests/testing/surgery_models.h"
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
  EXPECT_THAT(unsure.reason, HasSubstr("not so far that no token can choose a new expert"));
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

// Capacity limits what an expert takes; copies that no token goes to change nothing of it.
TEST_F(Exactness, OfRoutersWithACapacityLooksAtDormantCopies) {
  const auto with_router_bias = [&](std::string_view family, const Json& capacity) {
    const auto plain =
        families::open_model(testing::surgery_model(dir_ / cat("c", ++count_), families::family_of(family)));
    std::vector<testing::HandMadeTensor> tensors;
    for (const auto& entry : plain.checkpoint.entries()) {
      const std::string name(entry.info->name);
      tensors.push_back(testing::f32_tensor(name, entry.info->shape, plain.checkpoint.read_f32(name)));
      if (name.ends_with("classifier.weight"))
        tensors.push_back(testing::f32_tensor(name.substr(0, name.size() - 6) + "bias", {4}, std::vector<float>(4)));
    }
    Json config = plain.config.json;
    config["router_bias"] = true;
    if (!capacity.is_null() || family == "nllb-moe") config["expert_capacity"] = capacity;
    return families::open_model(testing::write_model(dir_ / cat("c", ++count_), config, tensors));
  };
  const auto one = with_router_bias("switch_transformers", 8);
  EXPECT_TRUE(of(one, "dormant").exact) << of(one, "dormant").reason;
  EXPECT_THAT(of(one, "copy").reason, HasSubstr("is divided among copies"));
  const auto two = of(with_router_bias("nllb-moe", 8), "dormant");
  EXPECT_FALSE(two.known) << "nothing bounds logits of a router whose input no RMS norm makes";
  EXPECT_THAT(two.reason, Not(HasSubstr("router-init dormant")));
  EXPECT_THAT(of(with_router_bias("nllb-moe", 8), "copy").reason, HasSubstr("is divided among copies"));
}

// -- values, not names --------------------------------------------------------

TEST_F(Exactness, LooksAtWhatMethodsReallyMake) {
  const auto mixtral = model("mixtral", 1);
  EXPECT_TRUE(of(mixtral, "copy_noise:lambda=0", "copy_noise:lambda=0").exact);
  EXPECT_TRUE(of(mixtral, "scaled_copy:factor=1", "interpolate:alpha=0").exact);
  EXPECT_THAT(of(mixtral, "copy", "copy_noise:lambda=0.001").reason,
              HasSubstr("copy_noise:lambda=0.001 changes the weights"));
  EXPECT_THAT(of(mixtral, "scaled_copy:factor=0.99").reason, HasSubstr("scaled_copy:factor=0.99 changes the scores"));
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

// -- factors, and the dtypes that their products are stored in -----------------

/// Scores of random tokens before and after, as a router in fp32 makes them: another set of experts is chosen by more
/// than rounding.
bool choice_changes(const std::vector<float>& before, const std::vector<float>& after, int64_t factor, int64_t top_k) {
  const size_t experts = before.size();
  for (uint64_t token = 0; token < 4000; ++token) {
    const auto logits = testing::some_values(experts, 1 + token);
    std::vector<double> scores(experts), grown(experts);
    double sum = 0;
    for (const float z : logits) sum += std::exp(double{z});
    for (size_t e = 0; e < experts; ++e) {
      const double p = std::exp(double{logits[e]}) / sum;
      scores[e] = p + double{before[e]};
      grown[e] = static_cast<double>(factor) * (p / static_cast<double>(factor) + double{after[e]});
    }
    const auto chosen = [&](std::vector<double> of, size_t expert) {
      const double own = of[expert];
      std::ranges::sort(of, std::greater<>());
      return own - of[static_cast<size_t>(top_k)];  // above the first that is not chosen
    };
    for (size_t e = 0; e < experts; ++e) {
      const double a = chosen(scores, e), b = chosen(grown, e);
      if ((a > 0) != (b > 0) && std::abs(a - b) > 1e-6 * std::max(1.0, std::abs(double{before[e]}))) return true;
    }
  }
  return false;
}

// Softmax gates with a selection bias: each of 3 siblings has a third of the probability and wants a third of the bias.
TEST_F(Exactness, IsNotWhereSelectionBiasesLoseDigits) {
  const std::vector<float> steps{0, 0.0625f, 0.125f, 0.1875f};
  int exact = 0, lossy = 0;
  for (const io::Dtype dtype : {io::Dtype::kF32, io::Dtype::kBf16, io::Dtype::kF16}) {
    for (const float base : {0.0f, 1e-6f, 0.01f, 1.0f, 8.0f, 60.0f, 1000.0f, 20000.0f}) {
      const fs::path path = testing::surgery_model(dir_ / cat("e", ++count_), families::family_of("ernie4_5_moe"));
      for (int64_t layer = 0; layer < 2; ++layer) {
        testing::edit_values(path, cat("model.layers.", layer, ".mlp.moe_statics.e_score_correction_bias"),
                             [&](std::vector<float>& values) {
                               for (size_t e = 0; e < values.size(); ++e)
                                 values[e] = base + steps[e] * std::clamp(base, 0.01f, 1.0f);
                             });
      }
      testing::store_in(path, dtype);
      const auto model = families::open_model(path);
      for (const char* experts : {"2x", "3x", "4x"}) {
        plan::GrowthOptions options{.experts = {experts}, .scale_top_k = true};
        const auto result = of(model, "copy", "copy", options);
        SCOPED_TRACE(cat(io::dtype_name(dtype), " ", base, " ", experts, ": ", result.reason));
        options.router_init = MethodChoice{"copy", {}};
        const auto plan = plan::make_plan(model.config, options, nullptr);
        const detail::GrownLayers grown(model, plan);
        const auto bias = grown.rows(families::Role::kSelectionBias, 0);
        const std::vector<float> after(bias->after.begin(), bias->after.begin() + 4);
        if (result.exact) {
          EXPECT_FALSE(choice_changes(bias->before, after, plan.top_k_factor, model.config.top_k));
          ++exact;
        } else if (result.known) {
          EXPECT_THAT(result.reason, HasSubstr("scores against each other by up to"));
          ++lossy;
        }
        EXPECT_FALSE(base == 8 && dtype == io::Dtype::kBf16 && plan.top_k_factor == 3 && result.exact);
        EXPECT_TRUE(result.known || base > 64) << "scores lose digits beside biases above 64";
        EXPECT_FALSE(base > 64 && plan.top_k_factor == 3 && result.exact);
      }
    }
  }
  EXPECT_GE(exact, 20);
  EXPECT_GE(lossy, 10);
}

TEST_F(Exactness, IsNotWhereDownMatricesLoseDigits) {
  const auto stored = [&](io::Dtype dtype) {
    const fs::path path = testing::tiny_model(dir_ / cat("d", ++count_), "mixtral", {.sizes = {.expert_width = 12}});
    testing::store_in(path, dtype);
    return families::open_model(path);
  };
  for (const io::Dtype dtype : {io::Dtype::kF32, io::Dtype::kBf16, io::Dtype::kF16}) {
    for (const int64_t parts : {2, 3, 4}) {  // gates divide among parts, so down matrices are multiplied by `parts`
      plan::GrowthPlan plan = plan::make_plan(stored(dtype).config, {.split = parts}, nullptr);
      const auto result = growth_exactness(stored(dtype), plan);
      const bool loses = parts == 3 && dtype != io::Dtype::kF32;
      EXPECT_EQ(result.exact, !loses) << io::dtype_name(dtype) << ' ' << result.reason;
      EXPECT_TRUE(result.known);
      if (loses) {
        EXPECT_THAT(result.reason, HasSubstr(cat("w2.weight' times 3 are rounded to ", io::dtype_name(dtype))));
      }
    }
  }
}

// Powers of two cost f16 digits where the products are below its normal numbers.
TEST_F(Exactness, LooksAtTheSmallestValuesOfDownMatrices) {
  const auto& dbrx = families::family_of("dbrx");
  const auto with_down_values = [&](float size) {
    const fs::path path = testing::surgery_model(dir_ / cat("s", ++count_), dbrx);
    Json config = families::open_model(path).config.json;
    config["ffn_config"]["moe_normalize_expert_weights"] = 2.0;  // 4 siblings: down matrices times 1/2
    io::write_file_atomically(path / "config.json", config.dump(2));
    for (const auto& slot : families::open_model(path).slots) {
      if (slot.role() != families::Role::kExpertDown) continue;
      testing::edit_values(path, slot.name, [&](std::vector<float>& values) {
        for (float& x : values) x = size * (1 + std::abs(x));
      });
    }
    testing::store_in(path, io::Dtype::kF16);
    return families::open_model(path);
  };
  const plan::GrowthOptions four{.experts = {"4x"}, .scale_top_k = true};
  EXPECT_TRUE(of(with_down_values(1), "copy", "copy", four).exact);
  EXPECT_THAT(of(with_down_values(1e-6f), "copy", "copy", four).reason, HasSubstr("times 0.5 are rounded to F16"));
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
