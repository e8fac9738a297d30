// What balancing does to loads over a run, not only to its loss.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/eval/perplexity.h"
#include "coppice/families/match.h"
#include "coppice/grow/expand.h"
#include "coppice/nn/decoder.h"
#include "coppice/plan/lineage.h"
#include "coppice/step/balance.h"
#include "coppice/train/handover.h"
#include "coppice/train/run.h"
#include "coppice/train/run_directory.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;

constexpr int64_t kSteps = 120, kLast = 30;

TrainOptions balanced_run(const TempDir& dir, const std::string& family, const std::string& kind) {
  auto o = testing::tiny_run(dir.path());
  o.model_family = family;
  o.balance = kind;
  o.steps = kSteps;
  o.micro_batch = 8;
  o.schedule = "constant";
  o.out = dir / cat(family, "-", kind);
  return o;
}

double mean_of_last(const std::vector<Json>& lines, const std::string& key, int64_t count = kLast) {
  double sum = 0;
  for (size_t i = lines.size() - static_cast<size_t>(count); i < lines.size(); ++i) sum += lines[i].at(key).as_double();
  return sum / static_cast<double>(count);
}

// The parameter is a family; one of each class of routers.
class BalancedRun : public ::testing::TestWithParam<const char*> {};

TEST_P(BalancedRun, IsMoreEvenWithTheAuxiliaryLossInEveryLayer) {
  const TempDir dir;
  auto none = balanced_run(dir, GetParam(), "none");
  none.batch_tokens = 1024;  // so that noise alone makes little unevenness
  none.micro_batch = 64;
  none.lr = 3e-3;
  auto aux = none;
  aux.balance = "aux";
  aux.aux_coef = 0.05;
  aux.out = dir / "aux";
  (void)train(none);
  (void)train(aux);
  const auto without = testing::metrics(none.out, "loss"), with = testing::metrics(aux.out, "loss");
  for (const char* key : {"layer/0/maxvio", "layer/1/maxvio"}) {
    EXPECT_LT(mean_of_last(with, key), mean_of_last(without, key) + 0.03) << key;
    EXPECT_LT(mean_of_last(with, key), 0.25) << key;
  }
  EXPECT_NEAR(mean_of_last(with, "aux"), 2.0, 0.05) << "K for even loads";
}
INSTANTIATE_TEST_SUITE_P(Families, BalancedRun, ::testing::Values("qwen3_moe", "gpt_oss", "glm4_moe", "minimax_m2"),
                         [](const auto& p) { return std::string(p.param); });

// The loss is that of the whole batch, and its gradient nearly so, whatever fits into memory at a time.
TEST(BalancedRunInParts, IsOfTheWholeBatchWhateverTheMicroBatch) {
  const TempDir dir;
  std::vector<std::vector<Json>> runs;
  for (const int64_t size : {8, 3, 1}) {
    auto o = balanced_run(dir, "qwen3_moe", "aux");
    o.steps = 4;
    o.warmup = 0;
    o.aux_coef = 1.0;  // so that gradients are of it in the main
    o.micro_batch = size;
    o.out = dir / std::to_string(size);
    (void)train(o);
    runs.push_back(testing::metrics(o.out, "loss"));
  }
  const auto expect_near = [&](size_t step, const char* key, double share) {
    const double whole = runs[0][step].at(key).as_double();
    for (const auto& run : runs) EXPECT_NEAR(run[step].at(key).as_double(), whole, share * whole) << key << " " << step;
  };
  expect_near(0, "aux", 1e-5);
  expect_near(0, "grad_norm", 0.02);
  expect_near(3, "loss", 0.01);
}

TEST(BalancedRunResumed, GivesTheSameLossesWithAnAuxiliaryLossAcrossAGrowth) {
  const TempDir dir;
  auto o = balanced_run(dir, "glm4_moe", "aux");
  o.steps = 16;
  o.micro_batch = 3;
  o.growth = Json::parse(R"([{"at_step": 6, "experts": "6", "score_batches": 2}])", "test");
  o.handover = "release";
  o.handover_steps = 5;
  const auto losses = [](const std::filesystem::path& run) {
    std::vector<std::string> out;
    for (const Json& line : testing::metrics(run, "loss"))
      out.push_back(cat(line.at("step").dump(), " ", line.at("aux").dump(), " ", line.at("grad_norm").dump()));
    return out;
  };
  (void)train(o);
  auto parts = o;
  parts.out = dir / "parts";
  for (const int64_t stop : {3, 6, 7, 12, 16}) {
    parts.stop_at = stop == 16 ? 0 : stop;
    EXPECT_EQ(train(parts).last_step, stop);
    parts.resume = true;
  }
  EXPECT_EQ(losses(parts.out), losses(o.out));
  EXPECT_EQ(testing::tensor_files(checkpoint_path(parts.out, 16)), testing::tensor_files(checkpoint_path(o.out, 16)));
}

TEST(BalancedRunOfACheckpoint, TakesItsOwnCoefficient) {
  const TempDir dir;
  auto o = balanced_run(dir, "qwen3_moe", "auto");
  o.steps = 2;
  o.aux_coef = 0.25;
  const auto made = train(o).checkpoint;
  EXPECT_EQ(families::open_model(made).config.aux_loss_coef, 0.25) << "the run's, so that others train on with it";

  o.aux_coef = {};
  o.model_path = made;
  o.steps = 4;
  o.warmup = 0;
  o.out = dir / "own";
  (void)train(o);
  o.aux_coef = 0.25;
  o.out = dir / "given";
  (void)train(o);
  EXPECT_EQ(testing::trajectory(dir / "own"), testing::trajectory(dir / "given"));
  o.resume = true;
  o.aux_coef = 0.5;
  expect_error(ErrorCode::kUsage, {"balance.aux_coef"}, [&] { (void)train(o); });
}

TEST(BalancedRunOfTransformers, TakesThatForm) {
  const TempDir dir;
  auto o = balanced_run(dir, "qwen3_moe", "aux");
  o.steps = 3;
  o.out = dir / "layers";
  (void)train(o);
  o.balance_form = "transformers";
  o.out = dir / "transformers";
  (void)train(o);
  const auto layers = testing::metrics(dir / "layers", "aux"), average = testing::metrics(dir / "transformers", "aux");
  EXPECT_EQ(layers[0].at("loss").dump(), average[0].at("loss").dump());
  EXPECT_NE(layers[0].at("aux").dump(), average[0].at("aux").dump());
}

// Loads of the experts that have tokens at all, by the worst of them.
TEST(BalancedRunWithSleepers, KeepsThoseAwakeAsEvenAsBeforeAndWakesTheRest) {
  const TempDir dir;
  auto o = balanced_run(dir, "glm4_moe", "loss_free");
  o.batch_tokens = 256;
  o.steps = 200;
  o.balance_rate = 4e-3;
  o.lr = 4e-3;
  (void)train(o);
  auto grown = o;
  grown.growth = Json::parse(R"([{"at_step": 60, "experts": "2x", "select": "uniform"}])", "test");
  grown.handover = "dormant";
  grown.handover_steps = 120;
  grown.out = dir / "dormant";
  (void)train(grown);
  const auto control = testing::metrics(o.out, "loss"), lines = testing::metrics(grown.out, "loss");
  for (const int layer : {0, 1}) {
    const auto maxvio = cat("layer/", layer, "/maxvio"), dead = cat("layer/", layer, "/dead_share");
    double awake = 0, before = 0;
    int64_t steps = 0;
    for (size_t i = 60; i < 100; ++i) {
      if (lines[i].at(dead).as_double() != 0.5) continue;  // all copies sleep, and half of the experts have all tokens
      awake += (lines[i].at(maxvio).as_double() + 1) / 2 - 1;
      before += control[i].at(maxvio).as_double();
      ++steps;
    }
    ASSERT_GT(steps, 20);
    EXPECT_LT(awake, before * 1.3 + 0.02 * static_cast<double>(steps)) << "layer " << layer;
    EXPECT_EQ(lines[60].at(dead).as_double(), 0.5);
    EXPECT_LT(mean_of_last(lines, dead, 20), 0.1) << "awake when handover.steps are over";
  }
}

TEST(BalancedRunWithSleepers, ResumesAndGoesOnBitForBit) {
  const TempDir dir;
  auto o = balanced_run(dir, "glm4_moe", "loss_free");
  o.growth = Json::parse(R"([{"at_step": 4, "experts": "2x", "select": "uniform"}])", "test");
  o.handover = "dormant";
  o.handover_steps = 8;
  o.balance_rate = 0.01;
  o.steps = 16;
  (void)train(o);
  auto parts = o;
  parts.out = dir / "parts";
  parts.stop_at = 9;
  const auto middle = train(parts).checkpoint;

  auto other = parts;  // goes on with the checkpoint, in a run of its own
  other.growth = Json();
  other.model_path = middle;
  other.start = "continue";
  other.stop_at = 0;
  other.out = dir / "other";
  other.handover_steps = 7;
  expect_error(ErrorCode::kUsage, {"'dormant'", "handover.steps 8", "until step 12"}, [&] { (void)train(other); });
  other.handover = "none";
  other.handover_steps = 0;
  expect_error(ErrorCode::kUsage, {"'none'", "handover.steps 8"}, [&] { (void)train(other); });
  other.handover = "dormant";
  other.handover_steps = 8;
  (void)train(other);

  parts.stop_at = 0;
  parts.resume = true;
  (void)train(parts);
  const auto whole = testing::tensor_files(checkpoint_path(o.out, 16));
  EXPECT_EQ(testing::tensor_files(checkpoint_path(parts.out, 16)), whole);
  EXPECT_EQ(testing::tensor_files(checkpoint_path(other.out, 16)), whole);
}

double deepest(const fs::path& checkpoint) {
  const auto model = nn::Decoder::load(families::open_model(checkpoint), nn::ComputeDtype::kF32);
  const auto parents = *plan::newest_parents(*plan::read_lineage(checkpoint));
  double out = 0;
  for (const auto& [layer, bias_E] : model.selection_bias()) {
    out = std::max(out, std::ranges::max(step::depths_below_lineage(bias_E, parents.at(layer))));
  }
  return out;
}

TEST(BalancedRunWithSleepers, GoesOnInAFreshRun) {
  const TempDir dir;
  auto o = balanced_run(dir, "glm4_moe", "loss_free");
  o.growth = Json::parse(R"([{"at_step": 4, "experts": "2x", "select": "uniform"}])", "test");
  o.handover = "dormant";
  o.handover_steps = 8;
  o.balance_rate = 1e-3;
  o.steps = 16;
  o.stop_at = 9;
  const auto middle = train(o).checkpoint;
  const auto note = plan::noted_waking(*plan::read_lineage(middle));
  EXPECT_EQ(note.steps, 8);
  EXPECT_EQ(note.left, 3);
  const double depth = deepest(middle);
  EXPECT_GT(depth, 0.1);
  EXPECT_LT(depth, 1.0) << "not told by its depth";

  auto fresh = o;
  fresh.growth = Json();
  fresh.model_path = middle;
  fresh.out = dir / "fresh";
  fresh.warmup = 0;
  const auto refused = [&](const char* policy, int64_t steps, const char* found) {
    fresh.handover = policy;
    fresh.handover_steps = steps;
    expect_error(ErrorCode::kUsage, {found, "until step 3", "'dormant' with handover.steps 8"},
                 [&] { (void)train(fresh); });
  };
  refused("none", 0, "'none'");
  refused("release", 8, "'release'");
  refused("dormant", 7, "handover.steps 7");
  fresh.handover_steps = 8;
  fresh.stop_at = 2;
  const auto second = train(fresh).checkpoint;
  EXPECT_EQ(plan::noted_waking(*plan::read_lineage(second)).left, 1);
  EXPECT_NEAR(deepest(second), depth / 3, 1e-6);

  // From there, with the trainer's state and without.
  auto other = fresh;
  other.model_path = second;
  other.start = "continue";
  other.stop_at = 3;
  other.out = dir / "other";
  EXPECT_EQ(deepest(train(other).checkpoint), 0);

  fresh.resume = true;
  fresh.stop_at = 3;
  const auto awake = train(fresh).checkpoint;
  EXPECT_EQ(plan::noted_waking(*plan::read_lineage(awake)).left, 0);
  EXPECT_EQ(deepest(awake), 0);
  EXPECT_EQ(testing::tensor_files(checkpoint_path(other.out, 3)), testing::tensor_files(awake));
}

TEST(BalancedRunWithSleepers, RefusesALineageThatLostTheGrowth) {
  const TempDir dir;
  auto o = balanced_run(dir, "glm4_moe", "loss_free");
  o.growth = Json::parse(R"([{"at_step": 2, "experts": "2x", "select": "uniform"}])", "test");
  o.handover = "dormant";
  o.handover_steps = 6;
  o.steps = 10;
  o.stop_at = 4;
  const auto middle = train(o).checkpoint;
  fs::remove(middle / "coppice.json");
  o.stop_at = 0;
  auto other = o;
  o.resume = true;
  expect_error(ErrorCode::kFormat, {"coppice.json", "records no expansion", "step 2"}, [&] { (void)train(o); });
  other.growth = Json();
  other.model_path = middle;
  other.start = "continue";
  other.out = dir / "other";
  expect_error(ErrorCode::kUsage, {"coppice.json", "records no expansion"}, [&] { (void)train(other); });
}

TEST(BalancedRunWithSleepers, RefusesWhatWouldLetThemSleep) {
  const TempDir dir;
  auto o = balanced_run(dir, "glm4_moe", "loss_free");
  o.steps = 40;
  o.handover = "dormant";
  o.balance_rate = 0;
  o.growth = Json::parse(R"([{"at_step": 4, "select": "uniform"}])", "test");
  expect_error(ErrorCode::kUsage, {"handover.steps", "balance.rate"}, [&] { (void)train(o); });
  o.balance_rate = 1e-3;
  const char* const twice = R"([{"at_step": 4, "select": "uniform"}, {"at_step": 20, "select": "uniform"}])";
  o.growth = Json::parse(twice, "test");
  expect_error(ErrorCode::kUsage, {"growth 2", "dormant", "handover.steps"}, [&] { (void)train(o); });
  o.handover_steps = 17;
  expect_error(ErrorCode::kUsage, {"growth 2", "handover.steps"}, [&] { (void)train(o); });
}

}  // namespace
}  // namespace coppice::train
