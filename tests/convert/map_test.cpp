#include "coppice/convert/map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "coppice/convert/families.h"
#include "coppice/convert/pairs.h"
#include "tests/testing/convert_examples.h"
#include "tests/testing/errors.h"

namespace coppice::convert {
namespace {

using testing::conversion;
using testing::dense_config;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

Mapping map_of(const families::ModelConfig& config, const std::string& to, int64_t granularity = 1) {
  const auto plan = make_conversion_plan(config, 1, conversion(to, 4 * granularity, 2 * granularity, granularity));
  return map_to_moe(config, families::expected_tensors(config), plan);
}

const MappedTensor& tensor_of(const Mapping& mapping, std::string_view name) {
  const auto found = std::ranges::find(mapping.tensors, name, [](const MappedTensor& t) { return t.slot.name.view(); });
  EXPECT_NE(found, mapping.tensors.end()) << name;
  return *found;
}

TEST(MapToMoe, SaysOfEveryTensorWhereItComesFrom) {
  const Mapping mapping = map_of(dense_config(), "mixtral", 2);
  EXPECT_THAT(mapping.losses, IsEmpty());
  EXPECT_EQ(mapping.tensors.size(), families::expected_tensors(mapping.config).size());
  const MappedTensor& expert = tensor_of(mapping, "model.layers.1.block_sparse_moe.experts.3.w2.weight");
  EXPECT_EQ(expert.origin, Origin::kExperts);
  EXPECT_EQ(expert.source, "model.layers.1.mlp.down_proj.weight");
  EXPECT_EQ(tensor_of(mapping, "model.layers.1.block_sparse_moe.gate.weight").origin, Origin::kRouter);
  EXPECT_EQ(tensor_of(mapping, "model.norm.weight").origin, Origin::kCopy);
}

TEST(MapToMoe, WritesTheConfigurationThatTheTensorsFollowFrom) {
  const Json& json = map_of(dense_config(), "granitemoe", 2).config.json;
  EXPECT_EQ(json.at("model_type"), Json("granitemoe"));
  EXPECT_EQ(json.at("num_local_experts"), Json(8));
  EXPECT_EQ(json.at("num_experts_per_tok"), Json(4));
  EXPECT_EQ(json.at("intermediate_size"), Json(24));
  EXPECT_DOUBLE_EQ(json.at("attention_multiplier").as_double(), 0.25);  // heads of 16
  EXPECT_EQ(json.at("attention_bias"), Json(false));
  EXPECT_EQ(json.find("mlp_bias"), nullptr);
}

// A key that the dense family ignores and the new one obeys must not slip through.
TEST(MapToMoe, CarriesNoKeyThatTheDenseFamilyDoesNotLookAt) {
  const Json stray = Json::object({{"embedding_multiplier", Json(12.0)},
                                   {"sliding_window", Json(7)},
                                   {"router_jitter_noise", Json(0.5)},
                                   {"partial_rotary_factor", Json(0.25)}});
  const auto config = dense_config("llama", stray);
  EXPECT_EQ(map_of(config, "granitemoe").config.json.at("embedding_multiplier"), Json(1.0));
  const Json mixtral = map_of(config, "mixtral").config.json;
  EXPECT_TRUE(mixtral.at("sliding_window").is_null());
  EXPECT_EQ(mixtral.find("router_jitter_noise"), nullptr);
  EXPECT_EQ(map_of(config, "glm4_moe").config.json.at("partial_rotary_factor"), Json(1.0));
}

TEST(MapToMoe, NamesWhatIsLost) {
  const auto biases = dense_config("llama", Json::object({{"attention_bias", Json(true)}, {"mlp_bias", Json(true)}}));
  const auto losses = map_of(biases, "qwen2_moe").losses;
  ASSERT_THAT(losses, SizeIs(4));  // of attention's output, and of gate, up and down
  EXPECT_THAT(losses[0], HasSubstr("'model.layers.0.self_attn.o_proj.bias' (and in 3 more layers): qwen2_moe has no"));
  EXPECT_THAT(map_of(dense_config("qwen3"), "mixtral").losses, SizeIs(2));
  EXPECT_THAT(map_of(dense_config(), "qwen3_moe").losses, ElementsAre(HasSubstr("q_norm"), HasSubstr("k_norm")));
}

TEST(MapToMoe, CarriesLocalAttentionWhereItCanBeSaid) {
  const auto mistral = dense_config("mistral", Json::object({{"sliding_window", Json(16)}}));
  EXPECT_EQ(map_of(mistral, "mixtral").config.json.at("sliding_window"), Json(16));
  EXPECT_THAT(map_of(mistral, "granitemoe").losses, ElementsAre(HasSubstr("'sliding_window' of 16 positions")));
  const Json some =
      Json::object({{"sliding_window", Json(16)}, {"use_sliding_window", Json(true)}, {"max_window_layers", Json(1)}});
  const Json json = map_of(dense_config("qwen2", some), "qwen2_moe").config.json;
  EXPECT_EQ(json.at("layer_types").items().front(), Json("full_attention"));
  EXPECT_EQ(json.at("layer_types").items().back(), Json("sliding_attention"));
  EXPECT_THAT(map_of(dense_config("qwen3", some), "qwen3_moe").losses, ElementsAre(HasSubstr("all layers or none")));
}

TEST(MapToDense, IsTheWayBack) {
  const Mapping there = map_of(dense_config(), "mixtral");
  const Mapping back = map_to_dense(there.config, families::expected_tensors(there.config), "llama");
  EXPECT_THAT(back.losses, IsEmpty());
  EXPECT_EQ(back.config.dense_width, 48);
  EXPECT_EQ(tensor_of(back, "model.layers.2.mlp.up_proj.weight").origin, Origin::kExpertMean);
  EXPECT_EQ(tensor_of(back, "lm_head.weight").origin, Origin::kCopy);
}

TEST(MapToDense, RefusesLayersOfTwoWidths) {
  auto options = conversion("qwen3_moe", 8, 4, 2);
  options.every = 2;
  const auto config = dense_config("qwen3");
  const Mapping there =
      map_to_moe(config, families::expected_tensors(config), make_conversion_plan(config, 1, options));
  testing::expect_error(ErrorCode::kUnsupported, {"width 48", "experts 24"},
                        [&] { (void)map_to_dense(there.config, families::expected_tensors(there.config), "qwen3"); });
}

TEST(ConversionPairs, AreAllPairsOfTheTables) {
  const auto pairs = conversion_pairs();
  EXPECT_EQ(pairs.size(), dense_families().size() * moe_families().size());
  for (const ConversionPair& pair : pairs) {
    const bool is_default = std::ranges::any_of(
        dense_families(), [&](const DenseFamily& row) { return row.model_type == pair.from && row.to == pair.to; });
    if (!is_default) continue;
    EXPECT_THAT(pair.losses, IsEmpty()) << pair.from;
  }
}

}  // namespace
}  // namespace coppice::convert
