#include "coppice/verify/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace coppice::verify {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Json config_of(const std::string& family, const std::string& more = "{}") {
  Json config =
      Json::parse(R"({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 24, "moe_intermediate_size": 24, "vocab_size": 64, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "hidden_act": "silu"})",
                  "test");
  config["model_type"] = family;
  const Json others = Json::parse(more, "test");
  for (const auto& [key, value] : others.members()) config[key] = value;
  return config;
}

/// What is said of a configuration beside the same one with `edit` made.
ConfigDifferences differences(const Json& before, const std::function<void(Json&)>& edit) {
  Json after = before;
  edit(after);
  return compare_configs(families::read_config(before, "before"), families::read_config(after, "after"));
}

std::function<void(Json&)> set(const std::string& key, const std::string& value) {
  return [=](Json& config) { config[key] = Json::parse(value, "test"); };
}

/// In this release's spelling, in the one before, and left to the family.
struct Rope {
  std::string family, nested, flat;
};
class EveryRope : public ::testing::TestWithParam<Rope> {};
INSTANTIATE_TEST_SUITE_P(
    Verify, EveryRope,
    ::testing::Values(
        Rope{"minimax", R"({"rope_theta": 1000000.0, "rope_type": "default"})", R"({"rope_theta": 1000000})"},
        Rope{"hunyuan_v1_moe", R"({"rope_theta": 10000.0, "rope_type": "default"})", R"({"rope_theta": 1e4})"},
        Rope{"afmoe", R"({"rope_theta": 10000.0, "rope_type": "default"})", R"({"rope_theta": 10000})"},
        Rope{"qwen3_next", R"({"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25})",
             R"({"rope_theta": 10000, "partial_rotary_factor": 0.25})"},
        Rope{"mixtral", R"({"rope_theta": 1000000.0, "rope_type": "default"})", R"({"rope_theta": 1000000})"},
        Rope{"laguna",
             R"({"full_attention": {"rope_theta": 500000.0, "rope_type": "default", "partial_rotary_factor": 0.5},
                           "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}})",
             "{}"}),
    [](const auto& test) { return test.param.family; });

TEST_P(EveryRope, IsTheSameInEverySpellingAndNeitherMoreNorLess) {
  const auto& [family, nested, flat] = GetParam();
  const Json in_five = config_of(family, R"({"rope_parameters": )" + nested + "}");
  const Json left_out = config_of(family);
  for (const Json& before : {left_out, config_of(family, flat), in_five}) {
    SCOPED_TRACE(before.dump());
    for (const Json& after : {left_out, in_five}) {
      const ConfigDifferences found = differences(before, [&](Json& config) { config = after; });
      EXPECT_THAT(found.problems, IsEmpty());
      EXPECT_THAT(found.added, IsEmpty());
    }
    const char* const kScaled[] = {R"({"rope_type": "yarn", "factor": 40.0})", R"({"type": "linear", "factor": 8.0})",
                                   R"({"rope_type": "default", "rope_theta": 123.0})",
                                   R"({"rope_type": "default", "partial_rotary_factor": 0.125})"};
    for (const char* key : {"rope_parameters", "rope_scaling"}) {
      for (const char* scaled : kScaled) {
        SCOPED_TRACE(scaled);
        EXPECT_THAT(differences(before, set(key, scaled)).problems, ElementsAre(HasSubstr("rope")));
      }
    }
  }
}

TEST(CompareConfigs, TellsAMemberThatWasAddedToRotaryEmbeddings) {
  const Json before = config_of("minimax", R"({"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}})");
  const ConfigDifferences found =
      differences(before, set("rope_parameters", R"({"rope_theta": 1000000.0, "rope_type": "yarn", "factor": 40.0})"));
  EXPECT_THAT(found.problems, ElementsAre(HasSubstr("'rope_parameters' is")));
  EXPECT_THAT(differences(before, set("partial_rotary_factor", "0.5")).problems,
              ElementsAre(HasSubstr("rotary embeddings are")));
  EXPECT_THAT(differences(before, set("partial_rotary_factor", "1.0")).problems, IsEmpty());
}

TEST(CompareConfigs, KnowsWhatAnAbsentWindowOrChunkMeans) {
  for (const auto& [family, key, value] :
       {std::tuple("afmoe", "sliding_window", "1024"), std::tuple("cohere2_moe", "sliding_window", "4096"),
        std::tuple("llama4_text", "attention_chunk_size", "8192")}) {
    SCOPED_TRACE(family);
    const Json before = config_of(family);
    EXPECT_THAT(differences(before, set(key, value)).problems, IsEmpty());
    EXPECT_THAT(differences(before, set(key, "null")).problems,
                ElementsAre(HasSubstr(std::string("is null; wanted absent, which means ") + value)));
    EXPECT_THAT(differences(before, set(key, "7")).problems, ElementsAre(HasSubstr("is 7; wanted absent")));
    const Json with_none = config_of(family, "{\"" + std::string(key) + "\": null}");
    EXPECT_THAT(differences(with_none, [key](Json& config) { config.erase(key); }).problems,
                ElementsAre(HasSubstr(std::string("is absent, which means ") + value + "; wanted null")));
  }
}

TEST(CompareConfigs, NamesNullAgainstAbsentWhereNothingSaysThatItIsTheSame) {
  const Json before = config_of("lfm2_moe");
  const ConfigDifferences same = differences(before, set("sliding_window", "null"));
  EXPECT_THAT(same.problems, IsEmpty());
  EXPECT_THAT(same.not_compared("config.json"), IsEmpty());
  const ConfigDifferences unclear = differences(before, set("norm_topk_prob", "null"));
  EXPECT_THAT(unclear.problems, IsEmpty());
  EXPECT_THAT(unclear.not_compared("config.json"),
              ElementsAre(HasSubstr("null before or after and absent in the other (norm_topk_prob)")));
}

TEST(CompareConfigs, TakesRemoteCodeAsPartOfTheModel) {
  const std::string good = R"({"AutoModelForCausalLM": "modeling.Model"})";
  const Json without = config_of("afmoe"), with = config_of("afmoe", R"({"auto_map": )" + good + "}");
  EXPECT_THAT(differences(with, [](Json&) {}).problems, IsEmpty());
  const auto evil = set("auto_map", R"({"AutoModelForCausalLM": "evil.EvilModel"})");
  EXPECT_THAT(differences(with, evil).problems,
              ElementsAre(HasSubstr("'auto_map.AutoModelForCausalLM' is \"evil.EvilModel\"")));
  EXPECT_THAT(differences(without, evil).problems, ElementsAre(HasSubstr("'auto_map' is")));
}

}  // namespace
}  // namespace coppice::verify
