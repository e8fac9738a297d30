#include "coppice/convert/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/convert/lineage.h"
#include "coppice/methods/expert_init.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/conversion.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/convert_examples.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::convert {
namespace {

using testing::conversion;
using testing::expect_error;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::TempDir;
using testing::tiny_model;

std::filesystem::path dense_model(const TempDir& dir, const std::string& name, std::string_view family = "llama",
                                  uint64_t seed = 1) {
  return tiny_model(dir / name, family, {.sizes = {.dense_width = 48}, .seed = seed});
}

/// Converts and returns the account of `verify`.
verify::ConversionResult convert_to(const std::filesystem::path& out, const std::vector<std::filesystem::path>& from,
                                    const ConversionOptions& options) {
  std::vector<families::Model> parents;
  for (const auto& directory : from) parents.push_back(families::open_model(directory));
  const auto plan = make_conversion_plan(parents.front().config, static_cast<int64_t>(parents.size()), options);
  Conversion conversion(parents, plan, nullptr);
  (void)convert(conversion, {.out = out, .threads = 2});
  return verify::verify_conversion(parents, families::open_model(out), 2);
}

std::vector<float> values(const std::filesystem::path& model, const std::string& name) {
  return io::Checkpoint::open(model).read_f32(name);
}

TEST(Convert, CutsMatricesByUnitsAndScalesThem) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  auto options = conversion("mixtral", 6, 3, 3);
  options.scale = "down";
  EXPECT_TRUE(convert_to(dir / "out", {from}, options).ok);
  const auto gate = values(from, "model.layers.0.mlp.gate_proj.weight");
  const auto down = values(from, "model.layers.0.mlp.down_proj.weight");
  for (const size_t expert : {1u, 4u}) {  // slice 1: units 16 to 31
    const std::string name = cat("model.layers.0.block_sparse_moe.experts.", expert);
    const auto w1 = values(dir / "out", name + ".w1.weight"), w2 = values(dir / "out", name + ".w2.weight");
    ASSERT_THAT(w1, SizeIs(16 * 64));
    for (size_t unit = 0; unit < 16; ++unit) {
      for (size_t i = 0; i < 64; ++i) {
        ASSERT_EQ(w1[unit * 64 + i], gate[(16 + unit) * 64 + i]);
        ASSERT_EQ(w2[i * 16 + unit], 3 * down[i * 48 + 16 + unit]);
      }
    }
  }
}

TEST(Convert, GivesStackedExpertsTheValuesOfSeparateOnes) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  for (const char* init : {"copy", "copy_noise", "orthogonal", "drop_units"}) {
    auto options = conversion("mixtral", 4, 2, 2);
    options.expert_init = {init, {}};
    const std::string separate = cat(init, "-separate"), stacked = cat(init, "-stacked");
    EXPECT_TRUE(convert_to(dir / separate, {from}, options).ok);
    options.to = "granitemoe";
    EXPECT_TRUE(convert_to(dir / stacked, {from}, options).ok);
    const auto input = values(dir / stacked, "model.layers.1.block_sparse_moe.input_linear.weight");
    std::vector<float> wanted;
    for (int expert = 0; expert < 4; ++expert) {
      for (const char* w : {".w1.weight", ".w3.weight"}) {
        const auto of = values(dir / separate, cat("model.layers.1.block_sparse_moe.experts.", expert, w));
        wanted.insert(wanted.end(), of.begin(), of.end());
      }
    }
    EXPECT_EQ(input, wanted) << init;
  }
}

TEST(Convert, MakesEveryMethodOfTheTable) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  for (const methods::ExpertInit& method : methods::expert_inits()) {
    auto options = conversion("mixtral", 4, 2, 2);
    options.expert_init = {std::string(method.name), {}};
    EXPECT_TRUE(convert_to(dir / std::string(method.name), {from}, options).ok) << method.name;
    const std::string name = "model.layers.0.block_sparse_moe.experts.";
    const auto first = values(dir / std::string(method.name), name + "1.w1.weight");
    const auto copy = values(dir / std::string(method.name), name + "3.w1.weight");
    EXPECT_EQ(first == copy, method.same_bytes) << method.name;
  }
}

TEST(Convert, GivesTheRowsOfAVirtualGroupOneValue) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  auto options = conversion("mixtral", 4, 2, 2);
  (void)convert_to(dir / "groups", {from}, options);
  options.virtual_groups = false;
  (void)convert_to(dir / "single", {from}, options);
  const auto rows_equal = [&](const char* out, size_t a, size_t b) {
    const auto rows = values(dir / out, "model.layers.0.block_sparse_moe.gate.weight");
    return std::equal(rows.begin() + static_cast<std::ptrdiff_t>(64 * a),
                      rows.begin() + static_cast<std::ptrdiff_t>(64 * (a + 1)),
                      rows.begin() + static_cast<std::ptrdiff_t>(64 * b));
  };
  EXPECT_TRUE(rows_equal("groups", 0, 1));
  EXPECT_TRUE(rows_equal("groups", 2, 3));
  EXPECT_FALSE(rows_equal("groups", 1, 2));
  EXPECT_FALSE(rows_equal("single", 0, 1));
}

TEST(Convert, AveragesTheTrunkOfSeveralParents) {
  const TempDir dir;
  const auto a = dense_model(dir, "a"), b = dense_model(dir, "b", "llama", 2);
  const auto account = convert_to(dir / "out", {a, b}, conversion("mixtral", 4, 2, 1));
  EXPECT_TRUE(account.ok);
  EXPECT_EQ(account.identical, 0);
  const std::string query = "model.layers.1.self_attn.q_proj.weight";
  const auto qa = values(a, query), qb = values(b, query), q = values(dir / "out", query);
  for (size_t i = 0; i < q.size(); ++i) {
    ASSERT_EQ(q[i], static_cast<float>((static_cast<double>(qa[i]) + static_cast<double>(qb[i])) / 2));
  }
  const std::string w2 = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
  EXPECT_EQ(values(dir / "out", w2), values(b, "model.layers.1.mlp.down_proj.weight"));
}

TEST(Convert, KeepsThePlanInTheLineage) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  (void)convert_to(dir / "out", {from}, conversion("mixtral", 4, 2, 2));
  const auto lineage = plan::read_lineage(dir / "out");
  ASSERT_TRUE(lineage);
  const auto plan = newest_conversion(*lineage);
  ASSERT_TRUE(plan);
  EXPECT_EQ(*plan,
            canonical(make_conversion_plan(families::open_model(from).config, 1, conversion("mixtral", 4, 2, 2))));
  EXPECT_FALSE(plan::newest_parents(*lineage));  // no expansion to undo
}

TEST(Convert, LeavesNothingWhereItIsRefused) {
  const TempDir dir;
  const auto from = dense_model(dir, "m", "qwen3");
  expect_error(ErrorCode::kUnsupported, {"qwen3 model cannot be converted to mixtral", "q_norm", "--lossy"},
               [&] { (void)convert_to(dir / "out", {from}, conversion("mixtral", 4, 2, 1)); });
  EXPECT_FALSE(std::filesystem::exists(dir / "out"));
  auto options = conversion("mixtral", 4, 2, 1);
  options.lossy = true;
  const auto account = convert_to(dir / "out", {from}, options);
  EXPECT_TRUE(account.ok);
  EXPECT_THAT(account.losses, SizeIs(2));
}

TEST(Convert, AveragesExpertsBackToTheDenseModel) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  auto options = conversion("granitemoe", 4, 2, 1);
  (void)convert_to(dir / "moe", {from}, options);
  const auto moe = families::open_model(dir / "moe");
  Conversion back(moe, dense_counterpart(moe), false);
  (void)convert(back, {.out = dir / "back"});
  EXPECT_EQ(testing::tensors_of(dir / "back"), testing::tensors_of(from));
  EXPECT_TRUE(verify::verify_average(moe, families::open_model(dir / "back"), 1).ok);
  const auto lineage = plan::read_lineage(dir / "back");
  ASSERT_TRUE(lineage);
  EXPECT_THAT(lineage->at("steps").items(), SizeIs(2));
  EXPECT_FALSE(newest_conversion(*lineage));
}

TEST(VerifyConversion, FindsAnyTensorThatIsNotAsMade) {
  const TempDir dir;
  const auto from = dense_model(dir, "m");
  (void)convert_to(dir / "out", {from}, conversion("mixtral", 4, 2, 2));
  const auto lineage = read_file(dir / "out" / io::kLineageFile);
  auto options = conversion("mixtral", 4, 2, 2);
  options.seed = 1;  // other routers
  (void)convert_to(dir / "other", {from}, options);
  io::write_file_atomically(dir / "other" / io::kLineageFile, lineage);
  std::vector<families::Model> parents;
  parents.push_back(families::open_model(from));
  const auto account = verify::verify_conversion(parents, families::open_model(dir / "other"), 2);
  EXPECT_FALSE(account.ok);
  EXPECT_THAT(account.problems, SizeIs(2));  // a router in each layer
  std::filesystem::remove(dir / "other" / io::kLineageFile);
  expect_error(ErrorCode::kFormat, {"has no conversion"},
               [&] { (void)verify::verify_conversion(parents, families::open_model(dir / "other"), 2); });
}

}  // namespace
}  // namespace coppice::convert
