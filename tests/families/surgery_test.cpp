// Families that coppice grows and does not train: which tensors are accepted, what the configuration must say.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/families/routing_class.h"
#include "coppice/models/expert_tensors.h"
#include "coppice/models/generate.h"
#include "tests/testing/errors.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::families {
namespace {

using testing::expect_error;
using testing::f32_tensor;
using testing::HandMadeTensor;
using testing::surgery_config;
using testing::TempDir;
using testing::write_model;

std::vector<HandMadeTensor> mamba_and_experts(const std::string& prefix = "model.") {
  std::vector<HandMadeTensor> tensors = {f32_tensor(prefix + "embed_tokens.weight", {16, 8}, 1),
                                         f32_tensor(prefix + "norm.weight", {8}, 2)};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string l = cat(prefix, "layers.", layer, ".");
    tensors.push_back(f32_tensor(l + "mamba.A_log", {4}, 3));
    tensors.push_back(f32_tensor(l + "input_layernorm.weight", {8}, 4));
  }
  const std::string ff = prefix + "layers.1.feed_forward.";
  tensors.push_back(f32_tensor(ff + "router.weight", {3, 8}, 5));
  for (int expert = 0; expert < 3; ++expert) {
    const std::string e = cat(ff, "experts.", expert, ".");
    const auto number = static_cast<uint64_t>(10 * expert + 20);
    tensors.push_back(f32_tensor(e + "gate_proj.weight", {4, 8}, number));
    tensors.push_back(f32_tensor(e + "up_proj.weight", {4, 8}, number + 1));
    tensors.push_back(f32_tensor(e + "down_proj.weight", {8, 4}, number + 2));
  }
  tensors.push_back(f32_tensor(prefix + "layers.0.feed_forward.gate_proj.weight", {6, 8}, 90));
  return tensors;
}

Json jamba_config() {
  Json config = surgery_config("jamba", "num_experts", 3);
  config["num_hidden_layers"] = 2;
  return config;
}

TEST(OpenSurgeryModel, LearnsFromTheWeightsWhichLayersHaveExperts) {
  const TempDir dir;
  const Model model = open_model(write_model(dir / "m", jamba_config(), mamba_and_experts()));
  EXPECT_EQ(model.config.moe_layer, (std::vector<bool>{false, true}));
  EXPECT_EQ(model.layers_with_experts, std::vector<int64_t>{1});
  EXPECT_EQ(model.config.expert_width, 4);
  EXPECT_THAT(model.config.unsupported_in_nn, ::testing::Not(::testing::IsEmpty()));
  const models::ExpertTensors parts(model);
  EXPECT_EQ(parts.of(1, 2).size(), 3u);
  EXPECT_EQ(parts.of(1, 2)[0].slot->name, "model.layers.1.feed_forward.experts.2.gate_proj.weight");
}

TEST(OpenSurgeryModel, CountsParametersAsIfThereWereMoreExperts) {
  const TempDir dir;
  const Model model = open_model(write_model(dir / "m", jamba_config(), mamba_and_experts()));
  const auto now = count_parameters(model), then = count_parameters(model, 6);
  EXPECT_EQ(now.experts, 3 * 96);
  EXPECT_EQ(then.experts, 6 * 96);
  EXPECT_EQ(then.routers, 6 * 8);
  EXPECT_EQ(then.total - now.total, 3 * 96 + 3 * 8);
  EXPECT_EQ(now.active, now.total - 96);  // 2 of 3
}

TEST(OpenSurgeryModel, NamesWhatIsMissingUnknownAndMisshapen) {
  const TempDir dir;
  auto tensors = mamba_and_experts();
  std::erase_if(tensors, [](const auto& t) { return t.info.name.ends_with("experts.1.up_proj.weight"); });
  tensors.push_back(f32_tensor("model.layers.1.feed_forward.experts.0.side_proj.weight", {2}, 7));
  expect_error(ErrorCode::kFormat,
               {"1 missing: model.layers.1.feed_forward.experts.1.up_proj.weight",
                "1 unknown: model.layers.1.feed_forward.experts.0.side_proj.weight"},
               [&] { (void)open_model(write_model(dir / "a", jamba_config(), tensors)); });

  tensors = mamba_and_experts();
  std::erase_if(tensors, [](const auto& t) { return t.info.name.ends_with("router.weight"); });
  expect_error(ErrorCode::kFormat, {"1 missing: model.layers.1.feed_forward.router.weight"},
               [&] { (void)open_model(write_model(dir / "b", jamba_config(), tensors)); });

  Json config = jamba_config();
  config["num_experts"] = 4;
  expect_error(ErrorCode::kFormat, {"experts.3.gate_proj.weight", "router.weight is [3, 8], wanted one for 4 experts"},
               [&] { (void)open_model(write_model(dir / "c", config, mamba_and_experts())); });

  tensors = mamba_and_experts();
  std::erase_if(tensors, [](const auto& t) { return t.info.name.find("feed_forward") != std::string::npos; });
  expect_error(ErrorCode::kFormat, {"missing: ", "down_proj"},
               [&] { (void)open_model(write_model(dir / "d", jamba_config(), tensors)); });
}

TEST(OpenSurgeryModel, RefusesOneExpertOfAnotherShape) {
  const TempDir dir;
  auto tensors = mamba_and_experts();
  for (auto& t : tensors) {
    if (t.info.name.ends_with("experts.2.down_proj.weight")) t = f32_tensor(t.info.name, {8, 5}, 1);
  }
  expect_error(ErrorCode::kShape, {"experts.2.down_proj.weight is [8, 5], wanted [8, 4]"},
               [&] { (void)open_model(write_model(dir / "m", jamba_config(), tensors)); });
}

TEST(OpenSurgeryModel, FindsTheLanguageModelInsideAMultimodalOne) {
  const TempDir dir;
  Json config = Json::object({{"model_type", "eyes"}, {"text_config", jamba_config()}});
  auto tensors = mamba_and_experts("model.language_model.");
  tensors.push_back(f32_tensor("model.vision_tower.layers.0.mlp.fc1.weight", {2, 2}, 1));
  const Model model = open_model(write_model(dir / "m", config, tensors));
  EXPECT_EQ(model.config.text_key, "text_config");
  EXPECT_EQ(model.layers_with_experts, std::vector<int64_t>{1});
  const Json grown = with_num_experts(model.config, 6);
  EXPECT_EQ(grown.at("text_config").at("num_experts"), Json(6));
  EXPECT_EQ(grown.at("model_type"), Json("eyes"));

  tensors.push_back(f32_tensor("model.vision_tower.layers.0.mlp.experts.0.fc1.weight", {2, 2}, 1));  // left alone
  EXPECT_EQ(open_model(write_model(dir / "n", config, tensors)).layers_with_experts, std::vector<int64_t>{1});
  tensors.push_back(f32_tensor("model.second.layers.0.mlp.experts.0.fc1.weight", {2, 2}, 1));
  expect_error(ErrorCode::kFormat, {"1 unknown: model.second.layers.0.mlp.experts.0.fc1.weight"},
               [&] { (void)open_model(write_model(dir / "o", config, tensors)); });
}

TEST(OpenSurgeryModel, ReadsTheBlocksOfKimiAsLayers) {
  const TempDir dir;
  const Json config = Json::object({{"model_type", "eyes"}, {"text_config", jamba_config()}});
  auto tensors = mamba_and_experts("language_model.model.");
  for (auto& t : tensors) {
    std::string name(t.info.name);
    if (const size_t at = name.find("model.layers."); at != std::string::npos)
      t = f32_tensor(name.replace(at, 13, "model.blocks."), t.info.shape, 1);
  }
  EXPECT_EQ(open_model(write_model(dir / "m", config, tensors)).layers_with_experts, std::vector<int64_t>{1});
}

TEST(OpenUnknownModel, SaysWhichFamilyItsTensorsAreNearestTo) {
  const TempDir dir;
  Json config = jamba_config();
  config["model_type"] = "bamboo";
  auto tensors = mamba_and_experts();
  tensors.push_back(f32_tensor("model.layers.1.feed_forward.noise.weight", {2}, 7));
  expect_error(ErrorCode::kUnsupported,
               {"'bamboo' is not a family of this build", "most similar to those of 'jamba'",
                "which does not know model.layers.1.feed_forward.noise.weight", "--family-file"},
               [&] { (void)open_model(write_model(dir / "m", config, tensors)); });
}

TEST(FamilyOf, RefusesProductKeysWithTheReason) {
  expect_error(ErrorCode::kUnsupported, {"'doge' cannot be expanded", "product-key"}, [] { (void)family_of("doge"); });
}

TEST(ReadSurgeryConfig, FollowsKeysIntoObjectsAndTakesListsOfTopK) {
  const Json dbrx = Json::parse(R"({"model_type": "dbrx", "n_layers": 2, "d_model": 8,
      "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 6}})",
                                "test");
  const ModelConfig config = read_config(dbrx, "test");
  EXPECT_EQ(config.num_experts, 4);
  EXPECT_EQ(config.top_k, 2);
  EXPECT_EQ(config.expert_width, 6);
  EXPECT_EQ(with_num_experts(config, 8).at("ffn_config").at("moe_num_experts"), Json(8));

  Json hunyuan = surgery_config("hunyuan_v1_moe", "num_experts", 8, "moe_topk");
  hunyuan["num_hidden_layers"] = 3;
  hunyuan["moe_topk"] = Json::parse("[1, 4, 2]", "test");
  EXPECT_EQ(read_config(hunyuan, "test").top_k_by_layer, (std::vector<int64_t>{1, 4, 2}));
  hunyuan["moe_topk"] = Json::parse("[1, 0]", "test");
  expect_error(ErrorCode::kFormat, {"moe_topk", "whole numbers"}, [&] { (void)read_config(hunyuan, "test"); });
}

TEST(ReadSurgeryConfig, CountsGroupsOnlyWhereTheyAreUsed) {
  Json config = models::make_config({.family = "deepseek_v2", .num_kv_heads = 4, .num_experts = 8}, io::Dtype::kF32);
  config["n_group"] = 4;
  config["topk_group"] = 2;
  config["topk_method"] = "greedy";
  EXPECT_EQ(read_config(config, "test").routing.num_groups, 1);
  config["topk_method"] = "group_limited_greedy";
  EXPECT_EQ(read_config(config, "test").routing.num_groups, 4);
}

TEST(RoutingClass, FollowsTheConfiguration) {
  const auto class_of = [](const char* model_type, const char* key = nullptr, const Json& value = {}) {
    const Family& family = family_of(model_type);
    Json config = family.surgery_only ? surgery_config(model_type, std::string(family.experts_keys.front()), 8)
                                      : models::make_config({.family = model_type, .num_kv_heads = 4}, io::Dtype::kF32);
    if (key != nullptr) config[key] = value;
    return routing_class_info(routing_class(read_config(config, "test").routing)).name;
  };
  EXPECT_EQ(class_of("mellum", "norm_topk_prob", true), "S1");
  EXPECT_EQ(class_of("mellum"), "S2");
  EXPECT_EQ(class_of("granitemoe"), "S3");
  EXPECT_EQ(class_of("cohere2_moe"), "S3");
  EXPECT_EQ(class_of("cohere2_moe", "expert_selection_fn", "sigmoid"), "S4");
  EXPECT_EQ(class_of("deepseek_v3"), "S4");
  EXPECT_EQ(class_of("deepseek_v3", "norm_topk_prob", false), "S5");
  EXPECT_EQ(class_of("dots1", "norm_topk_prob", false), "S5");
  EXPECT_EQ(class_of("llama4_text"), "S5");
  EXPECT_EQ(class_of("zaya"), "S7");
  EXPECT_EQ(class_of("deepseek_v4"), "S8");
  EXPECT_EQ(class_of("deepseek_v4", "scoring_func", "sqrtsoftplus"), "S8");
  EXPECT_EQ(class_of("kolibri1"), "S9");
  EXPECT_EQ(class_of("inkling_text"), "S10");
  EXPECT_EQ(class_of("bailing_moe"), "S6") << "until the weights show that there is no bias";
  EXPECT_EQ(class_of("bailing_moe", "score_function", "sigmoid"), "S4");
  EXPECT_EQ(class_of("deepseek", "norm_topk_prob", true), "S1");
  EXPECT_EQ(class_of("phimoe"), "sparsemixer");
}

TEST(ReadSurgeryConfig, RefusesScoresThatTheRouterDoesNotCompute) {
  for (const auto& [model_type, score] :
       {std::pair("deepseek_v4", "sigmoid"), std::pair("inkling2_text", "sqrtsoftplus")}) {
    Json config = surgery_config(model_type, "n_routed_experts", 4);
    config["scoring_func"] = score;
    expect_error(ErrorCode::kUnsupported, {"scoring_func", score}, [&] { (void)read_config(config, "test"); });
  }
}

TEST(LayoutText, SaysHowExpertsAreStored) {
  EXPECT_EQ(layout_text(family_of("mixtral")), "a tensor for each expert");
  EXPECT_EQ(layout_text(family_of("gpt_oss")), "stacked [experts, in, out], gate and up interleaved");
  EXPECT_EQ(layout_text(family_of("granitemoe")), "stacked [experts, out, in], gate and up one after the other");
  EXPECT_EQ(layout_text(family_of("dbrx")), "stacked [experts * out, in]");
  EXPECT_EQ(layout_text(family_of("step3p5")), "stacked [experts, out, in], gate and up apart");
  EXPECT_EQ(layout_text(family_of("inkling_text")), "stacked [experts, out, in], gate and up interleaved");
}

}  // namespace
}  // namespace coppice::families
