#include "coppice/families/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/models/generate.h"

namespace coppice::families {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Json config_of(std::string_view family) {
  models::ModelSizes sizes;
  sizes.family = family;
  if (family_of(family).has_latent_attention) sizes.num_kv_heads = sizes.num_heads;
  return models::make_config(sizes, io::Dtype::kF32);
}

ModelConfig read_with(std::string_view family, std::string_view key, Json value) {
  Json json = config_of(family);
  json[key] = std::move(value);
  return read_config(json, "m/config.json");
}

Json parse(std::string_view text) { return Json::parse(text, "test"); }

void expect_refused(const Json& json, std::string_view key, std::string_view wanted) {
  try {
    (void)read_config(json, "m/config.json");
    ADD_FAILURE() << "accepted: " << json.dump();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kFormat) << error.what();
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("m/config.json"), HasSubstr(std::string(key)), HasSubstr(std::string(wanted))));
  }
}

void expect_refused(std::string_view family, std::string_view key, Json value, std::string_view wanted) {
  Json json = config_of(family);
  json[key] = std::move(value);
  expect_refused(json, key, wanted);
}

TEST(ReadConfig, TakesBothGenerationsOfRopeKeys) {
  for (const char* text :
       {R"({"rope_theta": 500000.0})", R"({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}})",
        R"({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 500000}})"}) {
    Json json = config_of("llama");
    json.erase("rope_theta");
    const Json extra = parse(text);
    for (const auto& [key, value] : extra.members()) json[key] = value;
    const ModelConfig config = read_config(json, "c");
    EXPECT_EQ(config.rope.theta, 500000.0) << text;
    EXPECT_THAT(config.unsupported_in_nn, IsEmpty());
  }
}

TEST(ReadConfig, TurnsTheShareOfTheHeadThatTheFamilySays) {
  EXPECT_EQ(read_config(config_of("glm4_moe"), "c").rope.dim, 8);  // half of 16
  EXPECT_EQ(read_with("glm4_moe", "partial_rotary_factor", 1.0).rope.dim, 16);
  const auto minimax = [](std::string_view more) {
    Json json = config_of("minimax_m2");
    json.erase("partial_rotary_factor");
    const Json extra = parse(more);
    for (const auto& [key, value] : extra.members()) json[key] = value;
    return read_config(json, "c").rope.dim;
  };
  EXPECT_EQ(minimax("{}"), 16);
  EXPECT_EQ(minimax(R"({"rotary_dim": 8})"), 8);  // as MiniMax-M2 is published
  EXPECT_EQ(minimax(R"({"rotary_pct": 0.25})"), 4);
  EXPECT_EQ(minimax(R"({"rope_parameters": {"partial_rotary_factor": 0.5}})"), 8);
  EXPECT_EQ(minimax(R"({"rotary_dim": 8, "partial_rotary_factor": 0.5})"), 8);
  Json both = config_of("minimax_m2");
  both["partial_rotary_factor"] = 0.5;
  both["rotary_dim"] = 16;
  expect_refused(both, "rotary_dim",
                 "8 of the 16 dimensions of a head, because 'partial_rotary_factor' = 0.5 gives 8 rotary dimensions");
  expect_refused("minimax_m2", "rotary_dim", 17, "from 0 to 16");
}

TEST(ReadConfig, DoesNotComputeAPartOfTheHeadWhereTransformersTurnsAllOfIt) {
  for (const auto& [key, value] : {std::pair("partial_rotary_factor", Json(0.5)), std::pair("rotary_dim", Json(8))}) {
    const ModelConfig config = read_with("llama", key, value);
    EXPECT_EQ(config.rope.dim, 16);
    ASSERT_EQ(config.unsupported_in_nn.size(), 1u);
    EXPECT_THAT(config.unsupported_in_nn.front(), HasSubstr("8 of the 16 dimensions"));
  }
  EXPECT_THAT(read_with("llama", "partial_rotary_factor", 1.0).unsupported_in_nn, IsEmpty());
}

TEST(ReadConfig, FallsBackAsTransformersDoes) {
  Json json = config_of("qwen3");
  for (const char* key :
       {"head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps", "max_position_embeddings", "torch_dtype"}) {
    json.erase(key);
  }
  json["num_attention_heads"] = 32;
  const ModelConfig config = read_config(json, "c");
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.rms_eps, 1e-6);
  EXPECT_EQ(config.max_positions, 32768);
  EXPECT_EQ(config.dtype, "");

  json = config_of("mixtral");
  json.erase("rope_theta");
  json["head_dim"] = Json();
  EXPECT_EQ(read_config(json, "c").rope.theta, 1e6);
  EXPECT_EQ(read_config(json, "c").head_dim, 16);  // a null is absent: hidden_size / heads
}

TEST(ReadConfig, PlacesDenseLayers) {
  EXPECT_THAT(read_with("glm4_moe", "first_k_dense_replace", 1).moe_layer, ElementsAre(false, true));
  EXPECT_THAT(read_with("qwen3_moe", "mlp_only_layers", Json::array({Json(1)})).moe_layer, ElementsAre(true, false));
  EXPECT_THAT(read_with("qwen2_moe", "decoder_sparse_step", 2).moe_layer, ElementsAre(false, true));
  EXPECT_THAT(read_with("llama", "num_hidden_layers", 3).moe_layer, ElementsAre(false, false, false));
}

TEST(ReadConfig, TakesAliasesThatAgreeAndNamesThoseThatDoNot) {
  EXPECT_EQ(read_with("qwen3_moe", "num_local_experts", 4).num_experts, 4);
  Json only_alias = config_of("qwen3_moe");
  only_alias.erase("num_experts");
  only_alias["num_local_experts"] = 6;
  EXPECT_EQ(read_config(only_alias, "c").num_experts, 6);

  Json both = config_of("qwen3_moe");
  both["num_local_experts"] = 8;
  expect_refused(both, "'num_local_experts' is 8", "value of 'num_experts', 4");
}

TEST(ReadConfig, SaysWhatTheTrainerCannotCompute) {
  const auto unsupported = [](std::string_view family, std::string_view key, Json value) {
    return join(read_with(family, key, std::move(value)).unsupported_in_nn);
  };
  EXPECT_THAT(unsupported("llama", "rope_scaling", parse(R"({"rope_type": "proportional"})")),
              HasSubstr("proportional"));
  EXPECT_THAT(unsupported("llama", "rope_parameters", parse(R"({"full_attention": {"rope_theta": 5.0}})")),
              HasSubstr("each type of layer"));
  EXPECT_THAT(unsupported("qwen2", "hidden_act", "relu"), HasSubstr("relu"));
  EXPECT_THAT(unsupported("qwen3_moe", "hidden_act", "gelu_pytorch_tanh"), HasSubstr("gelu"));  // of experts
  EXPECT_EQ(unsupported("qwen3", "hidden_act", "gelu_pytorch_tanh"), "");
  EXPECT_THAT(unsupported("llama", "quantization_config", parse("{}")), HasSubstr("quantised"));
  EXPECT_EQ(unsupported("llama", "mlp_bias", true), "");
  EXPECT_EQ(unsupported("llama", "rope_scaling", Json()), "");
}

TEST(ReadConfig, KnowsHowFarEachLayerSees) {
  const auto windows = [](std::string_view family, std::string_view text) {
    Json json = config_of(family);
    json["num_hidden_layers"] = 4;
    const Json extra = parse(text);
    for (const auto& [key, value] : extra.members()) json[key] = value;
    return read_config(json, "c").window;
  };
  EXPECT_THAT(windows("mixtral", R"({"sliding_window": 128})"), ElementsAre(128, 128, 128, 128));
  EXPECT_THAT(windows("mistral", R"({"sliding_window": null})"), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(windows("qwen2", R"({"sliding_window": 128})"), ElementsAre(0, 0, 0, 0));  // use_sliding_window is false
  EXPECT_THAT(windows("qwen2", R"({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3})"),
              ElementsAre(0, 0, 0, 9));
  EXPECT_THAT(windows("qwen2_moe", R"({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3})"),
              ElementsAre(9, 0, 9, 0));
  EXPECT_THAT(windows("gpt_oss", R"({"layer_types": null})"), ElementsAre(128, 0, 128, 0));
  EXPECT_THAT(windows("gpt_oss", R"({"layer_types": ["full_attention", "full_attention", "sliding_attention",
                                                     "full_attention"]})"),
              ElementsAre(0, 0, 128, 0));
  EXPECT_THAT(windows("glm4_moe", R"({"sliding_window": 128})"), ElementsAre(0, 0, 0, 0));  // not in the family's code
  expect_refused("gpt_oss", "layer_types", Json::array({Json("full_attention")}), "one text per layer");

  Json json = config_of("mistral");
  json.erase("sliding_window");
  EXPECT_THAT(read_config(json, "c").window, ElementsAre(4096, 4096));
}

TEST(ReadConfig, ResolvesRopeScaling) {
  const auto rope = [](std::string_view family, std::string_view text) {
    return read_with(family, "rope_parameters", parse(text)).rope;
  };
  const Rope yarn = rope("llama", R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100})");
  EXPECT_EQ(yarn.scaling, RopeScaling::kYarn);
  EXPECT_EQ(yarn.original_positions, 100);
  EXPECT_NEAR(yarn.attention_factor, 0.1 * std::log(4.0) + 1, 1e-12);
  EXPECT_NEAR(rope("llama", R"({"type": "yarn", "original_max_position_embeddings": 64})").factor, 8, 1e-12);  // 512
  const Rope long_rope = rope("phi3", R"({"type": "su", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1],
                                          "long_factor": [2, 2, 2, 2, 2, 2, 2, 2], "factor": 1.0})");
  EXPECT_EQ(long_rope.scaling, RopeScaling::kLong);
  EXPECT_EQ(long_rope.original_positions, 4096);
  EXPECT_EQ(read_config(config_of("gpt_oss"), "c").rope.scaling, RopeScaling::kNone);
  Json json = config_of("gpt_oss");
  json.erase("rope_parameters");
  EXPECT_EQ(read_config(json, "c").rope.factor, 32);  // as transformers: yarn

  const auto refused = [](std::string_view text, std::string_view what) {
    expect_refused("llama", "rope_parameters", parse(text), what);
  };
  refused(R"({"rope_type": "linear"})", "'factor' is missing");
  refused(R"({"rope_type": "linear", "factor": 0})", "a number from");
  refused(R"({"rope_type": "longrope", "short_factor": [1], "long_factor": [1]})", "a list of 8 positive numbers");
  refused(R"({"rope_type": "yarn", "factor": 2, "rope_theta": 1})", "more than 1");
  refused(R"({"rope_type": "longrope", "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "factor": 2,
              "long_factor": [1, 1, 1, 1, 1, 1, 1, 1], "original_max_position_embeddings": 1})",
          "2 or more");
  refused(R"({"rope_type": "longrope", "long_factor": [1]})", "'short_factor' is missing");
  refused(R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1})", "more than low_freq");
}

TEST(ReadConfig, ReadsLatentAttention) {
  const ModelConfig config = read_config(config_of("deepseek_v3"), "c");
  ASSERT_TRUE(config.latent);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rope.dim, 8);
  EXPECT_EQ(config.latent->query_rank, 64);
  EXPECT_EQ(read_with("deepseek_v3", "q_lora_rank", Json()).latent->query_rank, 0);
  expect_refused("deepseek_v3", "kv_lora_rank", Json(), "missing");
  expect_refused("deepseek_v3", "num_key_value_heads", 2, "share their latents");
  EXPECT_THAT(read_with("glm4_moe_lite", "mlp_layer_types", parse(R"(["sparse", "dense"])")).moe_layer,
              ElementsAre(true, false));
  EXPECT_THAT(read_with("glm4_moe_lite", "mlp_layer_types", Json()).moe_layer, ElementsAre(false, true));
}

TEST(ReadConfig, RefusesHostileSizes) {
  expect_refused("qwen3_moe", "hidden_size", -4, "is -4; wanted a whole number from 1");
  expect_refused("qwen3_moe", "hidden_size", int64_t{1} << 40, "2147483648");
  expect_refused("qwen3_moe", "hidden_size", 64.5, "whole number");
  expect_refused("qwen3_moe", "hidden_size", "64", "is \"64\"");
  expect_refused("qwen3_moe", "num_hidden_layers", 1'000'000'000, "65536");
  expect_refused("qwen3_moe", "num_experts", 0, "wanted a whole number from 1");
  expect_refused("qwen3_moe", "num_experts_per_tok", 5, "at most the number of experts, 4");
  expect_refused("qwen3_moe", "norm_topk_prob", 1, "true or false");
  expect_refused("qwen3_moe", "mlp_only_layers", 3, "a list of layers");
  expect_refused("qwen3_moe", "rms_norm_eps", "small", "a number");
  expect_refused("qwen3_moe", "rope_parameters", 3, "an object");
  expect_refused("qwen3_moe", "num_attention_heads", 3, "multiple of the 2 key-value heads");
  expect_refused("qwen3_moe", "vocab_size", Json(), "missing");
  expect_refused("qwen3_moe", "model_type", 3, "a text");
  expect_refused("olmoe", "hidden_size", 128, "the 4 heads of 16 together");
  expect_refused("glm4_moe", "n_group", 3, "a divisor of the 4 experts");
  expect_refused("glm4_moe", "n_group", 4, "two or more experts");
  expect_refused("glm4_moe", "topk_group", 2, "at most n_group");
}

TEST(ReadConfig, RefusesSizesThatOverflowTogether) {
  Json json = config_of("qwen3_moe");
  for (const char* key : {"hidden_size", "moe_intermediate_size"}) json[key] = int64_t{1} << 31;
  json["num_experts"] = 1'000'000;
  expect_refused(json, "", "2^60 parameters");
  json["num_hidden_layers"] = 65536;
  expect_refused(json, "num_hidden_layers", "4194304 experts over all layers");
}

TEST(ReadConfig, NamesFileAndUnknownFamily) {
  try {
    (void)read_config(parse(R"({"model_type": "lama"})"), "m/config.json");
    FAIL() << "an unknown family was read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("m/config.json"), HasSubstr("did you mean 'llama'")));
  }
  expect_refused(parse("{}"), "'model_type'", "missing");
  expect_refused(parse("[]"), "", "JSON object");
}

TEST(WithNumExperts, RewritesEveryAliasAndNothingElse) {
  Json json = config_of("qwen3_moe");
  json["num_local_experts"] = 4;
  json["left_alone"] = parse("1e-05");
  const Json grown = with_num_experts(read_config(json, "c"), 8);
  EXPECT_EQ(read_config(grown, "c").num_experts, 8);
  json["num_experts"] = 8;
  json["num_local_experts"] = 8;
  EXPECT_EQ(grown, json);
}

TEST(MakeConfig, RefusesSizesThatTheFamilyCannotHave) {
  const auto refused = [](std::string_view family, auto change) {
    models::ModelSizes sizes;
    sizes.family = family;
    change(sizes);
    try {
      (void)models::make_config(sizes, io::Dtype::kF32);
      return std::string("accepted");
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kUsage) << error.what();
      return std::string(error.what());
    }
  };
  EXPECT_THAT(refused("mixtral", [](auto& s) { s.renormalise = false; }), HasSubstr("always renormalises"));
  EXPECT_THAT(refused("mixtral", [](auto& s) { s.first_dense_layers = 1; }), HasSubstr("every layer has experts"));
  EXPECT_THAT(refused("olmoe", [](auto& s) { s.shared_width = 32; }), HasSubstr("no shared expert"));
  EXPECT_THAT(refused("olmoe", [](auto& s) { s.head_dim = 32; }), HasSubstr("do not give the model dimension"));
  EXPECT_THAT(refused("glm4_moe", [](auto& s) { s.shared_width = 33; }),
              HasSubstr("not a multiple of the expert width"));
  EXPECT_THAT(refused("glm4_moe", [](auto& s) { s.head_dim = 18; }), HasSubstr("not a multiple of 4"));
  EXPECT_THAT(refused("glm4_moe", [](auto& s) { s.expert_width = 0; }), HasSubstr("expert width 0"));
  EXPECT_THAT(refused("glm4_moe", [](auto& s) { s.first_dense_layers = 2; }), HasSubstr("leave no layer"));
  EXPECT_THAT(refused("qwen3_moe", [](auto& s) { s.top_k = 5; }), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(refused("llama", [](auto& s) { s.num_heads = 5; }), HasSubstr("not a multiple of 5 heads"));
}

}  // namespace
}  // namespace coppice::families
