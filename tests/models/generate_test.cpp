#include "coppice/models/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "tests/testing/tiny_models.h"

namespace coppice::models {
namespace {

using families::Model;
using families::open_model;
using families::Role;
using families::TensorSlot;

namespace fs = std::filesystem;

class WriteRandomModel : public ::testing::Test {
 protected:
  WriteRandomModel() : directory_(fs::temp_directory_path() / cat("coppice-generate-", ::getpid())) {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  ~WriteRandomModel() override { fs::remove_all(directory_); }
  fs::path directory_;
};

TEST_F(WriteRandomModel, GivesTheSameTensorsForAnyShards) {
  const Model one = open_model(testing::tiny_model(directory_ / "one", "glm4_moe", {.dtype = io::Dtype::kBf16}));
  const Model many = open_model(
      testing::tiny_model(directory_ / "many", "glm4_moe", {.dtype = io::Dtype::kBf16, .max_shard_bytes = 20'000}));
  EXPECT_EQ(one.checkpoint.shards().size(), 1u);
  EXPECT_GT(many.checkpoint.shards().size(), 3u);
  for (const TensorSlot& slot : one.slots) {
    const auto a = one.checkpoint.at(slot.name).data(), b = many.checkpoint.at(slot.name).data();
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << slot.name;
  }
}

TEST_F(WriteRandomModel, WritesOnesForNormsZerosForBiasesAndNormalsElsewhere) {
  const Model model =
      open_model(testing::tiny_model(directory_ / "m", "qwen2_moe", {.sizes = {.shared_width = 32}, .std = 0.1}));
  for (const TensorSlot& slot : model.slots) {
    const auto values = model.checkpoint.read_f32(slot.name);
    double sum = 0, squares = 0;
    for (const float v : values) sum += v, squares += double{v} * v;
    const auto n = static_cast<double>(values.size());
    if (is_norm(slot.role())) {
      EXPECT_EQ(sum, n) << slot.name;
    } else if (is_bias(slot.role())) {
      EXPECT_EQ(squares, 0) << slot.name;
    } else {
      EXPECT_NEAR(sum / n, 0, 0.5 / std::sqrt(n)) << slot.name;  // five standard errors
      EXPECT_NEAR(std::sqrt(squares / n), 0.1, 0.36 / std::sqrt(n)) << slot.name;
    }
  }
}

TEST_F(WriteRandomModel, KeepsSelectionBiasesInF32) {
  const Model model = open_model(testing::tiny_model(directory_ / "m", "glm4_moe", {.dtype = io::Dtype::kBf16}));
  for (const TensorSlot& slot : model.slots) {
    const auto wanted = slot.role() == Role::kSelectionBias ? io::Dtype::kF32 : io::Dtype::kBf16;
    EXPECT_EQ(model.checkpoint.at(slot.name).info->dtype, wanted) << slot.name;
  }
}

TEST_F(WriteRandomModel, GivesEveryMatrixItsOwnValues) {
  const Model model = open_model(testing::tiny_model(directory_ / "m", "qwen3_moe"));
  std::set<float> first;
  size_t matrices = 0;
  for (const TensorSlot& slot : model.slots) {
    if (is_norm(slot.role()) || is_bias(slot.role())) continue;
    ++matrices;
    first.insert(model.checkpoint.read_f32(slot.name).front());
  }
  EXPECT_EQ(first.size(), matrices);
}

TEST_F(WriteRandomModel, ChangesWithTheSeed) {
  const Model a = open_model(testing::tiny_model(directory_ / "a", "llama", {.seed = 1}));
  const Model b = open_model(testing::tiny_model(directory_ / "b", "llama", {.seed = 2}));
  EXPECT_NE(a.checkpoint.read_f32("model.embed_tokens.weight"), b.checkpoint.read_f32("model.embed_tokens.weight"));
}

TEST_F(WriteRandomModel, RefusesAnExistingDirectory) {
  testing::tiny_model(directory_ / "m", "llama");
  EXPECT_THROW(testing::tiny_model(directory_ / "m", "llama"), Error);
}

}  // namespace
}  // namespace coppice::models
