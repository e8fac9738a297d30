#include "coppice/plan/undo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/plan/lineage.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::plan {
namespace {

using methods::MethodChoice;

namespace fs = std::filesystem;
using testing::TempDir;

void undo(const fs::path& from, const fs::path& to) {
  const auto model = families::open_model(from);
  output::OutputSettings settings;
  settings.out = to;
  (void)grow::expand(model, undo_plan(model.config, read_lineage(from)), settings);
}

void expect_same_model(const fs::path& a, const fs::path& b) {
  EXPECT_EQ(testing::tensors_of(a), testing::tensors_of(b));
  EXPECT_EQ(Json::read(a / "config.json"), Json::read(b / "config.json"));
  EXPECT_EQ(fs::exists(a / io::kLineageFile), fs::exists(b / io::kLineageFile));
  if (fs::exists(a / io::kLineageFile)) {
    EXPECT_EQ(Json::read(a / io::kLineageFile), Json::read(b / io::kLineageFile));
  }
}

TEST(UndoPlan, GivesTheModelBeforeByteForByteWhateverTheMethods) {
  const TempDir dir;
  for (const char* family : {"glm4_moe", "mixtral"}) {
    const auto model = testing::tiny_model(dir / family, family);
    for (const char* order : {"append", "siblings"}) {
      const auto out = dir / (std::string(family) + order);
      testing::grow(model, out,
                    {.experts = ExpertCount::from_text("2x"),
                     .expert_init = {"drop_units", {}},
                     .router_init = MethodChoice{"copy_noise", {}},
                     .order = order});
      undo(out, out.string() + "-undone");
      expect_same_model(model, out.string() + "-undone");
    }
  }
}

TEST(UndoPlan, TakesChainedExpansionsBackOneByOne) {
  const TempDir dir;
  const auto model = testing::tiny_model(dir / "m", "glm4_moe");
  testing::grow(model, dir / "once", {.experts = ExpertCount::from_text("2x"), .order = "siblings"});
  testing::grow(dir / "once", dir / "twice",
                {.experts = ExpertCount::from_text("1.5x"), .expert_init = {"copy_noise", {}}});
  undo(dir / "twice", dir / "back");
  expect_same_model(dir / "once", dir / "back");
  undo(dir / "back", dir / "first");
  expect_same_model(model, dir / "first");
}

TEST(UndoPlan, BringsBackTheOptimizerStateAndTopK) {
  const TempDir dir;
  const auto model = testing::tiny_model(dir / "m", "glm4_moe");
  testing::write_trainer(model);
  testing::grow(model, dir / "out", {.experts = ExpertCount::from_text("2x"), .scale_top_k = true});
  EXPECT_EQ(families::open_model(dir / "out").config.top_k, 2 * families::open_model(model).config.top_k);
  undo(dir / "out", dir / "back");
  expect_same_model(model, dir / "back");
  const auto state = [](const fs::path& at) {
    std::map<std::string, testing::Bytes> tensors;
    for (const auto& file : fs::directory_iterator(at / io::kTrainerFolder)) {
      if (file.path().extension() != ".safetensors") continue;
      const auto shard = io::SafetensorsFile::open(file.path());
      for (const auto& info : shard.tensors()) tensors[info.name] = testing::bytes_of({&shard, &info});
    }
    return tensors;
  };
  EXPECT_EQ(state(model), state(dir / "back"));
}

TEST(UndoPlan, RefusesWhatItCannotTakeBack) {
  const TempDir dir;
  const auto path = testing::tiny_model(dir / "m", "glm4_moe");
  const auto model = families::open_model(path);
  testing::expect_error(ErrorCode::kUsage, {"undo", "coppice.json"},
                        [&] { (void)undo_plan(model.config, std::nullopt); });
  testing::grow(path, dir / "split", {.split = 2});
  testing::expect_error(ErrorCode::kUsage, {"undo", "is a split"}, [&] { undo(dir / "split", dir / "no"); });
  testing::grow(path, dir / "out", {.experts = ExpertCount::from_text("2x")});
  testing::expect_error(ErrorCode::kFormat, {"coppice.json", "8 experts", "has 4"},
                        [&] { (void)undo_plan(model.config, read_lineage(dir / "out")); });
}

// A lineage comes from wherever the model does.
TEST(UndoPlan, RefusesAHostileLineage) {
  const TempDir dir;
  const auto path = testing::tiny_model(dir / "m", "glm4_moe");
  testing::grow(path, dir / "out", {.experts = ExpertCount::from_text("2x")});
  const auto model = families::open_model(dir / "out");
  const Json whole = *read_lineage(dir / "out");
  const auto expect_refused = [&](const auto& edit) {
    Json lineage = whole;
    Json step = lineage.at("steps").items()[0];
    edit(step);
    lineage["steps"] = Json::array({step});
    try {
      (void)undo_plan(model.config, lineage);
      ADD_FAILURE() << "accepted " << lineage.dump();
    } catch (const Error& error) {
      EXPECT_TRUE(error.code == ErrorCode::kFormat || error.code == ErrorCode::kUsage) << error.what();
    }
  };
  expect_refused([](Json& step) { step["parents"]["00"] = step.at("parents").members()[0].second; });
  expect_refused([](Json& step) { step["parents"] = Json::object(); });
  expect_refused([](Json& step) {
    Json only = step.at("parents").members()[0].second;
    step["parents"] = Json::object({{"9999", only}});
  });
  expect_refused([](Json& step) { step["parents"]["0"] = Json::array_of(std::vector<int64_t>(8, 0)); });
  expect_refused([](Json& step) { step["top_k_factor"] = Json(int64_t{1} << 62); });
  expect_refused([](Json& step) { step["experts"] = Json::array({Json(1), Json(8)}); });
}

/// What is said of an expansion with these options that is taken back.
std::string account_of(const fs::path& model, const fs::path& work, const GrowthOptions& options) {
  testing::grow(model, work / "out", options);
  undo(work / "out", work / "back");
  const auto grown = families::open_model(work / "out");
  const auto lineage = read_lineage(work / "out");
  const auto text = undo_text(grown, undo_plan(grown.config, lineage), *lineage, families::open_model(work / "back"));
  fs::remove_all(work / "out");
  fs::remove_all(work / "back");
  return text;
}

TEST(UndoAccount, NamesWhatTheOriginalsKeep) {
  const TempDir dir;
  const auto model = testing::tiny_model(dir / "m", "glm4_moe");
  using ::testing::HasSubstr;
  const auto plain = account_of(model, dir.path(), {.experts = {"2x"}});
  EXPECT_THAT(plain, HasSubstr("equal those before the expansion"));
  EXPECT_THAT(plain, ::testing::Not(HasSubstr("Differences from")));
  const auto noisy = account_of(
      model, dir.path(), {.experts = {"2x"}, .router_init = MethodChoice::from_text("bias_only:noise_to_original=1")});
  EXPECT_THAT(noisy, HasSubstr("the original experts keep the noise"));
  EXPECT_THAT(noisy, HasSubstr("differ from those before"));
  const GrowthOptions shared{.experts = {"2x"}, .optimizer_state = {"share", {{"power", 1}}}};
  EXPECT_THAT(account_of(model, dir.path(), shared), ::testing::Not(HasSubstr("optimizer"))) << "there is none";
  testing::write_trainer(model);
  EXPECT_THAT(account_of(model, dir.path(), shared), HasSubstr("'share'"));
}

// A third is not representable: tripled again it may be another number.
TEST(UndoAccount, ComparesScaledBiasesWithTheModelBefore) {
  const TempDir dir;
  const Json softmax = testing::surgery_config("ernie4_5_moe", "moe_num_experts", 2, "moe_k");
  const std::string moe = "model.layers.0.mlp.";
  std::vector<testing::HandMadeTensor> tensors = {
      testing::f32_tensor(moe + "gate.weight", {2, 8}, 1),
      testing::f32_tensor(moe + "moe_statics.e_score_correction_bias", {1, 2}, {0.1f, 0.7f}),
      testing::f32_tensor("model.embed_tokens.weight", {4, 8}, 2), testing::f32_tensor("model.norm.weight", {8}, 3)};
  for (const char* expert : {"experts.0.", "experts.1."}) {
    for (const char* name : {"gate_proj.weight", "up_proj.weight"})
      tensors.push_back(testing::f32_tensor(moe + expert + name, {4, 8}, 4));
    tensors.push_back(testing::f32_tensor(moe + expert + "down_proj.weight", {8, 4}, 5));
  }
  const auto model = testing::write_model(dir / "m", softmax, tensors);
  const auto account = [&](const char* experts) {
    return account_of(model, dir.path(),
                      {.experts = {experts}, .router_init = MethodChoice{"copy", {}}, .scale_top_k = true});
  };
  EXPECT_THAT(account("3x"), ::testing::HasSubstr("divided by 3 are multiplied by it again and may differ"));
  EXPECT_THAT(account("2x"), ::testing::Not(::testing::HasSubstr("may differ")));
  EXPECT_THAT(account("2x"), ::testing::HasSubstr("equal those before the expansion"));
}

}  // namespace
}  // namespace coppice::plan
