// What an expansion does to config.json: values are edited where they stand, and every key that repeats them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/families/count_keys_detail.h"
#include "coppice/models/generate.h"
#include "tests/testing/errors.h"
#include "tests/testing/hand_made_models.h"

namespace coppice::families {
namespace {

using testing::expect_error;
using testing::surgery_config;

Json parse(std::string_view text) { return Json::parse(text, "test"); }

ModelConfig read_with(std::string_view model_type, std::string_view more) {
  const Family& family = family_of(model_type);
  Json config = family.surgery_only
                    ? surgery_config(std::string(model_type), std::string(family.experts_keys.front()), 4,
                                     std::string(family.top_k_key))
                    : models::make_config({.family = std::string(model_type), .num_kv_heads = 4, .num_experts = 4},
                                          io::Dtype::kF32);
  const Json extra = parse(more);
  for (const auto& [key, value] : extra.members()) config[key] = value;
  return read_config(config, "test");
}

TEST(WithTopK, ScalesAListElementByElementAndBack) {
  const ModelConfig config = read_with("hunyuan_v1_moe", R"({"num_hidden_layers": 3, "num_experts": 8,
      "moe_topk": [1, 4, 2]})");
  EXPECT_EQ(config.top_k, 4);
  EXPECT_EQ(config.top_k_of(0), 1);
  EXPECT_EQ(config.top_k_of(2), 2);
  EXPECT_EQ(config.top_k_text(), "1 to 4");
  EXPECT_DOUBLE_EQ(config.mean_top_k(), 7.0 / 3);
  ModelConfig grown = config;
  grown.json = with_top_k_factor(config, {.factor = 2});
  EXPECT_EQ(grown.json.at("moe_topk").dump(), "[2, 8, 4]");
  EXPECT_EQ(with_top_k_factor(read_config(with_num_experts(grown, 16), "test"), {.factor = 2, .back = true})
                .at("moe_topk")
                .dump(),
            "[1, 4, 2]");
}

TEST(WithTopK, TakesBackWhatPeopleWrote) {
  const ModelConfig config =
      read_with("deepseek_v3", R"({"norm_topk_prob": false, "routed_scaling_factor": 2.827, "n_group": 1})");
  for (const int64_t factor : {2, 3, 5, 7}) {
    const Json there = with_top_k_factor(config, {.factor = factor});
    ModelConfig grown = config;
    grown.json = there;
    grown.routing.routed_scaling = there.at("routed_scaling_factor").as_double();
    grown.top_k = config.top_k * factor;
    EXPECT_EQ(with_top_k_factor(grown, {.factor = factor, .back = true}).at("routed_scaling_factor").dump(), "2.827");
  }
}

TEST(ReadTopK, WantsANumberForEachLayerAndOnlyWhereListsAre) {
  expect_error(ErrorCode::kFormat, {"'moe_topk' is [1]", "each of the 2 layers"},
               [] { (void)read_with("hunyuan_v1_moe", R"({"num_hidden_layers": 2, "moe_topk": [1]})"); });
  expect_error(ErrorCode::kFormat, {"num_experts_per_tok"},
               [] { (void)read_with("mixtral", R"({"num_experts_per_tok": [1, 2]})"); });
}

TEST(ReadTopK, TakesOtherNamesAndRefusesTwoThatDiffer) {
  EXPECT_EQ(read_with("ernie4_5_moe", R"({"num_experts_per_tok": 2})").top_k, 2);
  expect_error(ErrorCode::kFormat, {"'num_experts_per_tok' is 3", "'moe_k'"},
               [] { (void)read_with("ernie4_5_moe", R"({"num_experts_per_tok": 3})"); });
}

TEST(WithNumExperts, EditsEveryKeyThatRepeatsTheNumber) {
  const ModelConfig config = read_with("qwen3_moe", R"({"num_local_experts": 4, "n_routed_experts": 4,
      "ffn_config": {"moe_num_experts": 4}, "layers": [{"num_experts": 4}], "expert_layer_period": 4,
      "n_shared_experts": 4, "num_experts_by_layer_x": 7, "num_routed_experts": [0, 4],
      "vision_config": {"num_experts": 4}, "rope_note": 4})");
  const Json json = with_num_experts(config, 8);
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"})
    EXPECT_EQ(json.at(key), Json(8)) << key;
  EXPECT_EQ(json.at("ffn_config").at("moe_num_experts"), Json(8));
  EXPECT_EQ(json.at("layers").items()[0].at("num_experts"), Json(8));
  EXPECT_EQ(json.at("num_routed_experts").dump(), "[0, 8]");
  for (const char* key : {"expert_layer_period", "n_shared_experts", "rope_note"})
    EXPECT_EQ(json.at(key), Json(4)) << key;
  EXPECT_EQ(json.at("vision_config").at("num_experts"), Json(4));
}

TEST(WithNumExperts, RefusesAKeyThatMayRepeatIt) {
  expect_error(ErrorCode::kUnsupported, {"'moe.expert_total' is 4", "number of experts"},
               [] { (void)with_num_experts(read_with("qwen3_moe", R"({"moe": {"expert_total": 4}})"), 8); });
}

TEST(WithNumExperts, ComparesByValueHoweverItIsWritten) {
  const ModelConfig config = read_with("qwen3_moe", R"({"moe": {"num_experts": "4", "n_experts": 4.0,
      "moe_num_experts": 4e0, "num_routed_experts": {"0": 0, "1": 4}}, "note": "4"})");
  const Json json = with_num_experts(config, 8);
  EXPECT_EQ(
      json.at("moe").dump(),
      R"({"num_experts": "8", "n_experts": 8.0, "moe_num_experts": 8.0, "num_routed_experts": {"0": 0, "1": 8}})");
  EXPECT_EQ(json.at("note"), Json("4"));
  for (const char* more : {R"({"num_physical_experts": 4})", R"({"experts_per_layer": [4, 4, 4]})",
                           R"({"num_experts_per_layer": {"0": 4, "1": 4}})", R"({"moe": {"expert_count": "4"}})"}) {
    SCOPED_TRACE(more);
    expect_error(ErrorCode::kUnsupported, {"which is the number of experts"},
                 [&] { (void)with_num_experts(read_with("qwen3_moe", more), 8); });
  }
}

TEST(WithNumExperts, LeavesNoListOfTheExpertsAsItIs) {
  for (const char* more :
       {R"({"expert_ids": [0, 1, 2, 3]})", R"({"expert_bias": [0.1, 0.2, 0.3, 0.4]})",
        R"({"moe": {"experts": {"ids": [3, 2, 1, 0]}}})", R"({"expert_map": {"0": 1, "1": 2, "2": 3, "3": 0}})"}) {
    SCOPED_TRACE(more);
    expect_error(ErrorCode::kUnsupported, {"one entry per expert"},
                 [&] { (void)with_num_experts(read_with("qwen3_moe", more), 8); });
  }
  const char* const kOthers = R"({"num_hidden_layers": 4, "moe_expert_layers": [1, 2, 3, 0], "shared_expert_ids":
      [0, 1, 2, 3], "words": [0, 1, 2, 3], "vision_config": {"expert_ids": [0, 1, 2, 3]}, "expert_names": ["a", "b"],
      "expert_hidden_sizes": [6, 6, 6, 7]})";
  const ModelConfig config = read_with("qwen3_moe", kOthers);
  const Json json = with_num_experts(config, 8), others = parse(kOthers);
  for (const auto& [key, value] : others.members()) EXPECT_EQ(json.at(key), value);
}

TEST(WithTopK, KnowsTopKOfARouterFromASamplers) {
  for (const char* more : {R"({"moe": {"top_k": 2}})", R"({"router_config": [{"top_k": "2"}]})"}) {
    expect_error(ErrorCode::kUnsupported, {"top_k'", "experts per token"},
                 [&] { (void)with_top_k_factor(read_with("qwen3_moe", more), {.factor = 2}); });
  }
}

TEST(WithTopK, EditsEveryKeyThatRepeatsIt) {
  const ModelConfig config = read_with("qwen3_moe", R"({"moe_topk": 2, "index_topk": 2, "topk_group_size": 2,
      "top_k": 2, "router": {"num_experts_per_token": 2}})");
  const Json json = with_top_k_factor(config, {.factor = 2});
  EXPECT_EQ(json.at("num_experts_per_tok"), Json(4));
  EXPECT_EQ(json.at("moe_topk"), Json(4));
  EXPECT_EQ(json.at("router").at("num_experts_per_token"), Json(4));
  for (const char* key : {"index_topk", "topk_group_size", "top_k"}) EXPECT_EQ(json.at(key), Json(2)) << key;
  expect_error(ErrorCode::kUnsupported, {"'moe_topk_now'", "experts per token"},
               [] { (void)with_top_k_factor(read_with("qwen3_moe", R"({"moe_topk_now": 2})"), {.factor = 2}); });
}

TEST(WithExpertWidth, EditsListsThatRepeatIt) {
  ModelConfig config = read_with("hunyuan_v1_moe", R"({"num_hidden_layers": 2, "intermediate_size": 64,
      "moe_intermediate_size": [64, 64], "num_shared_expert": [1, 1]})");
  config.expert_width = 64;
  EXPECT_EQ(meaning_of("moe_intermediate_size", detail::Count::kExpertWidth), detail::KeyMeaning::kSame);
  Family without_shared = *config.family;  // the width is that of hunyuan's shared expert too, which is refused
  without_shared.shared_count_key = "num_shared_expert_none";
  config.family = &without_shared;
  EXPECT_EQ(with_expert_width(config, 32).at("moe_intermediate_size").dump(), "[32, 32]");
  EXPECT_EQ(with_expert_width(config, 32).at("intermediate_size"), Json(32));
}

TEST(WithNumExperts, NamesTheNewExpertsInListsOfModules) {
  const ModelConfig config = read_with("qwen3_moe", R"({"quantization_config": {"quant_method": "x", "ignore":
      ["lm_head", "model.layers.0.mlp.experts.0.up_proj", "model.layers.0.mlp.experts.1.up_proj",
       "model.layers.0.mlp.experts.2.up_proj", "model.layers.0.mlp.experts.3.up_proj"]}})");
  const Json ignored = with_num_experts(config, 6).at("quantization_config").at("ignore");
  EXPECT_EQ(ignored.items().size(), 7u);
  EXPECT_EQ(ignored.items().back(), Json("model.layers.0.mlp.experts.5.up_proj"));
  expect_error(ErrorCode::kUnsupported, {"experts.1.up_proj", "in the same way"}, [] {
    (void)with_num_experts(read_with("qwen3_moe", R"({"quantization_config": {"quant_method": "x", "ignore":
        ["model.layers.0.mlp.experts.0.up_proj"]}})"),
                           6);
  });
}

Json quantised_with(std::string_view member) {
  return with_num_experts(
             read_with("qwen3_moe", cat(R"({"quantization_config": {"quant_method": "x", )", member, "}}")), 6)
      .at("quantization_config");
}

TEST(WithNumExperts, NamesTheNewExpertsAsKeysToo) {
  const Json json = quantised_with(R"("dynamic": {"experts.0": {"bits": 8}, "experts.1": {"bits": 8},
      "experts.2": {"bits": 8}, "experts.3": {"bits": 8}, "lm_head": {}})");
  EXPECT_EQ(json.at("dynamic").members().size(), 7u);
  EXPECT_EQ(json.at("dynamic").at("experts.5").at("bits"), Json(8));
  expect_error(ErrorCode::kUnsupported, {"quantization_config.dynamic", "experts.3", "in the same way"}, [] {
    (void)quantised_with(R"("dynamic": {"experts.0": 8, "experts.1": 8, "experts.2": 8, "experts.3": 4})");
  });
}

TEST(WithNumExperts, ForgetsTheNamesOfExpertsThatAreGone) {
  const auto with = [](std::string_view names) {
    return read_with("qwen3_moe", cat(R"({"quantization_config": {"ignore": )", names, "}}"));
  };
  const Json before = with(R"(["a.experts.0", "a.experts.1", "a.experts.2", "a.experts.3", "lm_head"])").json;
  const ModelConfig grown = read_config(with_num_experts(read_config(before, "test"), 8), "test");
  EXPECT_EQ(with_num_experts(grown, 4), before);
}

TEST(WithNumExperts, RefusesPatternsThatNumberExperts) {
  for (const char* text :
       {"re:.*experts\\\\.[0-3]\\\\..*", "-:.*experts.0.*", "*experts.0*", "experts[0]", "a.experts.0-3",
        "experts\\\\.(0|1)", "experts.(?:0|1)", "re:experts\\\\.\\\\d\\\\.", "experts.7", "experts.00"}) {
    SCOPED_TRACE(text);
    for (const auto& member : {cat(R"("ignore": [")", text, R"("])"), cat(R"("dynamic": {")", text, R"(": {}})"),
                               cat(R"("deep": {"er": ")", text, R"("})")})
      expect_error(ErrorCode::kUnsupported, {"config.json: 'quantization_config.", "expert"},
                   [&] { (void)quantised_with(member); });
  }
  const std::string kept =
      R"("ignore": ["re:.*experts\\.\\d+\\.w1", "*.experts.*", "experts\\.[0-9]+", "shared_experts.0.up",
      "visual.experts.0", "re:.*expert.*", "lm_head", "layers.0"])";
  EXPECT_EQ(quantised_with(kept).dump(), parse(cat(R"({"quant_method": "x", )", kept, "}")).dump());
}

// Router switches.

TEST(ReadRouting, KeepsTheNormThatGatesAreDividedBy) {
  const auto norm = [](const char* text) {
    Json config = parse(R"({"model_type": "dbrx", "n_layers": 2, "d_model": 8,
        "ffn_config": {"model_type": "", "moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 6}})");
    EXPECT_EQ(with_num_experts(read_config(config, "test"), 8).at("ffn_config").at("moe_num_experts"), Json(8));
    if (*text != '\0') config["ffn_config"]["moe_normalize_expert_weights"] = parse(text);
    return read_config(config, "test").routing;
  };
  EXPECT_TRUE(norm("").renormalise);
  EXPECT_EQ(norm("").gate_norm, 1.0);
  EXPECT_EQ(norm("2").gate_norm, 2.0);
  EXPECT_TRUE(norm("2.0").renormalise);
  EXPECT_FALSE(norm("null").renormalise);
  EXPECT_EQ(norm("null").gate_norm, 0.0);
  expect_error(ErrorCode::kFormat, {"moe_normalize_expert_weights"}, [&] { (void)norm("0"); });
  expect_error(ErrorCode::kFormat, {"moe_normalize_expert_weights"}, [&] { (void)norm("\"p\""); });
}

TEST(ReadRouting, RefusesWordsThatItDoesNotKnow) {
  struct Case {
    const char *family, *more, *named;
  };
  for (const Case& c : {Case{"deepseek_v3", R"({"scoring_func": "tanh"})", "'scoring_func'"},
                        Case{"deepseek_v3", R"({"scoring_func": "softmax"})", "uses a sigmoid"},
                        Case{"qwen3_moe", R"({"scoring_func": "sigmoid"})", "uses a softmax"},
                        Case{"deepseek_v3", R"({"topk_method": "foo"})", "'topk_method'"},
                        Case{"deepseek_v3", R"({"topk_method": "greedy"})", "with a bias"},
                        Case{"deepseek_v2", R"({"topk_method": "noaux_tc"})", "without a bias"},
                        Case{"cohere2_moe", R"({"expert_selection_fn": "tanh"})", "'expert_selection_fn'"},
                        Case{"kimi_linear", R"({"moe_router_activation_func": "softmax"})", "uses a sigmoid"},
                        Case{"laguna", R"({"moe_apply_router_weight_on_input": true})", "gates multiply the outputs"},
                        Case{"qwen3_moe", R"({"n_group": 2, "topk_group": 1})", "no groups"}}) {
    SCOPED_TRACE(c.more);
    expect_error(ErrorCode::kUnsupported, {c.named}, [&c] { (void)read_with(c.family, c.more); });
  }
  EXPECT_EQ(read_with("dots1", R"({"scoring_func": "noaux_tc", "topk_method": "noaux_tc"})").top_k, 2);
}

TEST(ReadRouting, KnowsWhereTheSelectionBiasIsTurnedOff) {
  EXPECT_TRUE(read_with("lfm2_moe", "{}").routing.has_selection_bias);
  EXPECT_FALSE(read_with("lfm2_moe", R"({"use_expert_bias": false})").routing.has_selection_bias);
}

TEST(ReadRouting, TakesTheOtherNamesOfSwitches) {
  EXPECT_FALSE(read_with("kimi_linear", R"({"norm_topk_prob": false})").routing.renormalise);
  EXPECT_FALSE(read_with("kimi_linear", R"({"moe_renormalize": false})").routing.renormalise);
  const ModelConfig groups = read_with("kimi_linear", R"({"n_group": 2, "topk_group": 1, "num_experts_per_token": 1})");
  EXPECT_EQ(groups.routing.num_groups, 2);
  EXPECT_EQ(with_top_k_factor(groups, {.factor = 3}).at("n_group"), Json(6));
  expect_error(ErrorCode::kFormat, {"mean the same"},
               [] { (void)read_with("kimi_linear", R"({"norm_topk_prob": false, "moe_renormalize": true})"); });
}

}  // namespace
}  // namespace coppice::families
