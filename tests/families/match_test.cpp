#include "coppice/families/match.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "tests/testing/tiny_models.h"

namespace coppice::families {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Match : public ::testing::Test {
 protected:
  Match() : directory_(fs::temp_directory_path() / cat("coppice-match-", ::getpid())) {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  ~Match() override { fs::remove_all(directory_); }

  // A model whose only file has these tensors (all zero) instead of those of `config`.
  fs::path write(const Json& config, const std::function<void(std::vector<io::TensorInfo>&)>& change) {
    std::vector<io::TensorInfo> tensors;
    for (const TensorSlot& slot : expected_tensors(read_config(config, "test")))
      tensors.push_back(tensor(slot.name, slot.shape));
    change(tensors);
    const fs::path model = directory_ / "m";
    fs::create_directories(model);
    io::SafetensorsWriter writer(model / "model.safetensors", tensors);
    for (const auto& t : writer.tensors()) writer.write(t, 0, std::vector<std::byte>(t.bytes));
    writer.finish();
    std::ofstream(model / "config.json") << config.dump(2);
    return model;
  }

  static io::TensorInfo tensor(const std::string& name, std::vector<int64_t> shape) {
    return {.name = name, .dtype = io::Dtype::kF32, .shape = std::move(shape)};
  }

  static Error error_of(const fs::path& model) {
    try {
      (void)open_model(model);
    } catch (const Error& error) {
      return error;
    }
    return Error(ErrorCode::kInternal, "accepted");
  }

  static Json config_of(std::string_view family) {
    models::ModelSizes sizes;
    sizes.family = family;
    return models::make_config(sizes, io::Dtype::kF32);
  }

  fs::path directory_;
};

TEST_F(Match, PlacesEveryTensorOfEveryFamilyInTheTablesOrder) {
  for (const Family* family : testing::trained_families()) {
    const Model model = open_model(testing::tiny_model(directory_ / family->model_type, family->model_type));
    const auto expected = expected_tensors(model.config);
    ASSERT_EQ(model.slots.size(), expected.size()) << family->model_type;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(model.slots[i].name, expected[i].name);
      EXPECT_EQ(model.slots[i].rule, expected[i].rule);
      EXPECT_EQ(model.slots[i].shape, expected[i].shape);
    }
    EXPECT_EQ(model.digest().size(), 64u);
  }
}

TEST_F(Match, ListsMissingAndUnknownTensorsTogether) {
  const auto model = write(config_of("qwen3_moe"), [](auto& tensors) {
    std::erase_if(tensors, [](const auto& t) { return t.name.find("experts.3.up_proj") != std::string::npos; });
    tensors.push_back(tensor("model.layers.2.mlp.gate.weight", {4, 64}));  // past num_hidden_layers
    tensors.push_back(tensor("model.layers.0.mlp.experts.4.up_proj.weight", {32, 64}));
  });
  const Error error = error_of(model);
  EXPECT_EQ(error.code, ErrorCode::kFormat);
  EXPECT_THAT(
      error.what(),
      AllOf(HasSubstr(
                "2 missing: model.layers.0.mlp.experts.3.up_proj.weight, model.layers.1.mlp.experts.3.up_proj.weight"),
            HasSubstr("2 unknown: model.layers.0.mlp.experts.4.up_proj.weight, model.layers.2.mlp.gate.weight")));
}

TEST_F(Match, CountsMissesPastTheFirstTwenty) {
  const auto model = write(config_of("qwen3_moe"), [](auto& tensors) {
    std::erase_if(tensors, [](const auto& t) { return t.name.find(".experts.") != std::string::npos; });
  });
  EXPECT_THAT(error_of(model).what(), AllOf(HasSubstr("24 missing"), HasSubstr("(4 more)")));
}

TEST_F(Match, ListsEveryWrongShape) {
  const auto model = write(config_of("olmoe"), [](auto& tensors) {
    for (auto& t : tensors) {
      if (t.name.ends_with("mlp.gate.weight")) t = tensor(t.name, {5, 64});
    }
  });
  const Error error = error_of(model);
  EXPECT_EQ(error.code, ErrorCode::kShape);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("model.layers.0.mlp.gate.weight is [5, 64], wanted [4, 64]"),
                                  HasSubstr("model.layers.1.mlp")));
}

TEST_F(Match, WantsNoOutputMatrixWhereEmbeddingsAreTiedAndTakesOneOfTheirShape) {
  Json config = config_of("qwen2");
  config["tie_word_embeddings"] = true;
  EXPECT_EQ(std::string(error_of(write(config, [](auto&) {})).what()), "accepted");
  const auto with_head = [&](std::vector<int64_t> shape) {
    return error_of(write(config, [&](auto& tensors) { tensors.push_back(tensor("lm_head.weight", shape)); }));
  };
  EXPECT_EQ(std::string(with_head({256, 64}).what()), "accepted");
  EXPECT_THAT(with_head({256, 32}).what(), HasSubstr("lm_head.weight is [256, 32], wanted [256, 64]"));
}

TEST_F(Match, LetsInverseFrequenciesOfOldFilesPass) {
  const auto model = write(config_of("llama"), [](auto& tensors) {
    tensors.push_back(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", {8}));
  });
  for (const TensorSlot& slot : open_model(model).slots) EXPECT_THAT(slot.name, Not(HasSubstr("inv_freq")));
}

// transformers saves a shared expert of width 0 as tensors without elements; other tools leave them out.
TEST_F(Match, TakesASharedExpertOfWidthZeroWithOrWithoutItsTensors) {
  const Json config = config_of("glm4_moe");
  const auto num_shared = [](const Model& model) {
    return std::count_if(model.slots.begin(), model.slots.end(),
                         [](const auto& slot) { return slot.role() == Role::kSharedUp; });
  };
  EXPECT_EQ(num_shared(open_model(write(config, [](auto&) {}))), 2);
  const auto without =
      write(config, [](auto& tensors) { std::erase_if(tensors, [](const auto& t) { return t.elements() == 0; }); });
  EXPECT_EQ(num_shared(open_model(without)), 0);
}

}  // namespace
}  // namespace coppice::families
