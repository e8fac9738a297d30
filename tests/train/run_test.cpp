#include "coppice/train/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>

#include "coppice/data/tokenizer.h"
#include "coppice/nn/decoder.h"
#include "coppice/train/run_directory.h"
#include "coppice/train/run_settings.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::expect_error;
using ::testing::HasSubstr;
using testing::TempDir;
using testing::tiny_run;

TEST(TrainRun, LearnsAndBalances) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.steps = 60;
  const auto result = train(o);
  EXPECT_EQ(result.last_step, 60);
  EXPECT_EQ(result.tokens_seen, 60u * 128u);
  EXPECT_LT(result.loss, std::log(32.0) - 0.5);
  EXPECT_LT(result.validation_loss.at("val"), std::log(32.0) - 0.3);
  EXPECT_GT(result.tokens_per_s, 0);
  EXPECT_TRUE(result.checkpoint.empty());

  o.steps = 150;
  o.schedule = "constant";
  o.batch_tokens = 1024;  // so that noise alone makes little unevenness
  o.micro_batch = 64;
  o.lr = 3e-3;
  o.balance_rate = 2e-3;
  o.out = dir / "balanced";
  (void)train(o);
  o.balance = "none";
  o.out = dir / "unbalanced";
  (void)train(o);
  for (const char* key : {"layer/0/maxvio", "layer/1/maxvio"}) {
    const auto mean_of_last = [&](const char* run) {
      const auto lines = testing::metrics(dir / run, "loss");
      double sum = 0;
      for (size_t i = lines.size() - 40; i < lines.size(); ++i) sum += lines[i].at(key).as_double() / 40;
      return sum;
    };
    EXPECT_LT(mean_of_last("balanced"), 0.25) << key;
    EXPECT_LT(mean_of_last("balanced"), mean_of_last("unbalanced")) << key;
  }
}

TEST(TrainRun, GivesTheSameLossesTwiceOnTwoThreads) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.threads = 2;
  o.stop_at = 3;
  o.out = dir / "one";
  (void)train(o);
  o.out = dir / "two";
  (void)train(o);
  EXPECT_EQ(testing::trajectory(dir / "one"), testing::trajectory(dir / "two"));
}

// The parameter is the compute dtype.
class TrainResume : public ::testing::TestWithParam<const char*> {};

TEST_P(TrainResume, GivesSameLossAsUninterrupted) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.dtype = GetParam();
  o.validate_every = 10;
  o.out = dir / "whole";
  const auto whole = train(o);

  o.out = dir / "halves";
  o.stop_at = 10;
  EXPECT_EQ(train(o).last_step, 10);
  o.stop_at = 0;
  o.resume = true;
  const auto second = train(o);
  EXPECT_EQ(second.first_step, 10);
  EXPECT_EQ(testing::trajectory(dir / "halves").size(), 20u);
  EXPECT_EQ(testing::trajectory(dir / "halves"), testing::trajectory(dir / "whole"));
  EXPECT_EQ(second.validation_loss, whole.validation_loss);
  EXPECT_EQ(second.loss, whole.loss);
  EXPECT_EQ(testing::tensor_files(second.checkpoint), testing::tensor_files(whole.checkpoint));
}
INSTANTIATE_TEST_SUITE_P(Dtypes, TrainResume, ::testing::Values("f32", "bf16"), [](const auto& p) { return p.param; });

TEST(TrainResetAttention, ChangesWhatIsLearntAndResumesBitForBit) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.data_train = {testing::write_tokens(dir / "short", 32, 400, 11)};
  o.steps = 6;
  o.validate_every = 3;
  o.out = dir / "across";
  (void)train(o);
  o.reset_attention = true;
  o.out = dir / "whole";
  const auto whole = train(o);
  EXPECT_NE(testing::trajectory(dir / "whole"), testing::trajectory(dir / "across"));

  o.out = dir / "halves";
  o.stop_at = 3;
  (void)train(o);
  o.stop_at = 0;
  o.resume = o.recompute = true;
  EXPECT_EQ(testing::tensor_files(train(o).checkpoint), testing::tensor_files(whole.checkpoint));
  EXPECT_EQ(testing::trajectory(dir / "halves"), testing::trajectory(dir / "whole"));
  o.steps = 8;
  o.reset_attention = false;
  expect_error(ErrorCode::kUsage, {"data.reset_attention (true before, now false)"}, [&] { (void)train(o); });
}

TEST(TrainMomentsInBf16, LearnAndResumeBitForBit) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.dtype = "bf16";
  o.moments = "bf16";
  o.out = dir / "whole";
  const auto whole = train(o);
  EXPECT_LT(whole.loss, std::log(32.0) - 0.5);
  o.out = dir / "halves";
  o.stop_at = 10;
  (void)train(o);
  o.stop_at = 0;
  o.resume = true;
  const auto second = train(o);
  EXPECT_EQ(second.loss, whole.loss);
  EXPECT_EQ(testing::tensor_files(second.checkpoint), testing::tensor_files(whole.checkpoint));
}

TEST(TrainContinue, BranchesIntoAnotherRunFromAnyCheckpoint) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.dtype = "bf16";
  o.out = dir / "whole";
  const auto whole = train(o);
  o.out = dir / "trunk";
  o.stop_at = 10;
  const auto trunk = train(o);
  o.stop_at = 0;
  o.out = dir / "arm";
  o.model_path = trunk.checkpoint;
  o.start = "continue";
  const auto arm = train(o);
  EXPECT_EQ(arm.first_step, 10);
  EXPECT_EQ(arm.tokens_seen, whole.tokens_seen);
  EXPECT_EQ(testing::tensor_files(arm.checkpoint), testing::tensor_files(whole.checkpoint));
  EXPECT_EQ(testing::trajectory(o.out).size(), 10u);
}

TEST(TrainFresh, TakesTheWeightsAloneAndStartsAtStepZero) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.out = dir / "trunk";
  const auto trunk = train(o);
  o.out = dir / "fresh";
  o.model_path = trunk.checkpoint;
  o.steps = 5;
  o.lr = 1e-9;
  o.balance = "none";  // nothing moves
  const auto fresh = train(o);
  EXPECT_EQ(fresh.first_step, 0);
  EXPECT_EQ(fresh.last_step, 5);
  EXPECT_NEAR(fresh.validation_loss.at("val"), trunk.validation_loss.at("val"), 1e-4);
}

TEST(TrainRunDirectory, KeepsTheNewestAndEveryNth) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.out = dir / "run";
  o.checkpoint_every = 2;
  o.keep_last = 2;
  o.keep_every = 8;
  fs::create_directories(o.out / "checkpoints" / ".step-00000002.tmp-1");
  const auto result = train(o);
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(8, 16, 18, 20));
  EXPECT_EQ(result.checkpoint, checkpoint_path(o.out, 20));
  for (const auto& entry : fs::directory_iterator(o.out / "checkpoints")) {
    EXPECT_FALSE(entry.path().filename().string().starts_with('.')) << entry.path();
  }
  EXPECT_EQ(testing::metrics(o.out, "blocked_seconds").size(), 10u) << "an event for each checkpoint";
  EXPECT_THAT(read_file(o.out / "config.toml"), HasSubstr("[checkpoint]"));
}

TEST(TrainRunDirectory, CheckpointsAreModelsThatLoadWithTheirTokenizer) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.dtype = "bf16";
  o.out = dir / "run";
  o.tokenizer = dir / "tokenizer";
  fs::create_directory(o.tokenizer);
  io::write_file_atomically(o.tokenizer / "tokenizer_config.json", "{}\n");
  io::write_file_atomically(o.tokenizer / "notes.txt", "not the tokenizer's");
  const auto result = train(o);
  const auto model = families::open_model(result.checkpoint);
  EXPECT_EQ(model.config.dtype, "bfloat16");
  for (const auto& slot : model.slots) {
    const bool bias = slot.role() == families::Role::kSelectionBias;
    EXPECT_EQ(model.checkpoint.at(slot.name).info->dtype, bias ? io::Dtype::kF32 : io::Dtype::kBf16) << slot.name;
  }
  EXPECT_EQ(read_file(result.checkpoint / "tokenizer_config.json"), "{}\n");
  EXPECT_FALSE(fs::exists(result.checkpoint / "notes.txt"));
}

TEST(TrainOptionsCheck, NamesWhatIsWrong) {
  const TempDir dir;
  const auto good = tiny_run(dir.path());
  const auto refuses = [&](std::initializer_list<const char*> parts, const auto& change) {
    auto o = good;
    change(o);
    expect_error(ErrorCode::kUsage, parts, [&] { (void)train(o); });
  };
  refuses({"data.train", "empty"}, [](auto& o) { o.data_train.clear(); });
  refuses({"train.steps", "train.tokens"}, [](auto& o) { o.tokens = 100; });
  refuses({"train.batch_tokens", "multiple", "16"}, [](auto& o) { o.batch_tokens = 100; });
  refuses({"train.dtype", "'fp32'"}, [](auto& o) { o.dtype = "fp32"; });
  refuses({"train.stop_at", "30"}, [](auto& o) { o.stop_at = 30; });
  refuses({"train.resume", "train.out"}, [](auto& o) { o.resume = true; });
  refuses({"train.start", "model.path"}, [](auto& o) { o.start = "continue"; });
  refuses({"balance.kind", "loss_free"}, [](auto& o) {
    o.balance = "loss_free";
    o.model_family = "qwen3_moe";
  });
  refuses({"data.validation", "the same name"}, [](auto& o) { o.data_validation.push_back(o.data_validation[0]); });
  refuses({"data.reset_attention", "data.random"}, [](auto& o) {
    o.data_train.clear();
    o.random_tokens = o.reset_attention = true;
  });
  refuses({"data.weights", "2 weights for 1"}, [](auto& o) { o.data_weights = {1, 2}; });
}

TEST(TrainOptionsCheck, RefusesDataOfALargerVocabulary) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.data_train = {testing::write_tokens(dir / "large", 64, 20, 200)};
  expect_error(ErrorCode::kFormat, {"large"}, [&] { (void)train(o); });
}

TEST(TrainResumeCheck, RefusesAUsedFolderAndNamesChangedSettings) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.out = dir / "run";
  o.stop_at = 4;
  (void)train(o);
  expect_error(ErrorCode::kUsage, {"train.resume", "1 checkpoints"}, [&] { (void)train(o); });
  o.resume = true;
  auto changed = o;
  changed.seed = 9;
  changed.lr = 0.5;
  changed.data_train = {testing::write_tokens(dir / "other", 32, 20, 300)};
  expect_error(ErrorCode::kUsage, {"train.seed (0 before, now 9)", "optimizer.lr", "data.train"},
               [&] { (void)train(changed); });
  auto free = o;  // how long, how often and on how many threads may change
  free.stop_at = 6;
  free.steps = 30;
  free.threads = 2;
  free.checkpoint_every = 1;
  EXPECT_EQ(train(free).last_step, 6);
  o.out = dir / "none";
  expect_error(ErrorCode::kNotFound, {"no complete checkpoint"}, [&] { (void)train(o); });
}

TEST(TrainResumeCheck, TakesASettingThatTheRunDoesNotKnowForItsDefault) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  save::TrainerState saved{{}, identity(o), Json::array()};
  saved.settings.erase("data.reset_attention");
  check_same_run(saved, identity(o), Json::array());
  o.reset_attention = true;
  expect_error(ErrorCode::kUsage, {"data.reset_attention (false before, now true)"},
               [&] { check_same_run(saved, identity(o), Json::array()); });
}

TEST(TrainDivergence, StopsNamingTheStepAndKeepsTheLastGoodCheckpoint) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.out = dir / "run";
  o.checkpoint_every = 1;
  o.growth = Json::parse(R"([{"at_step": 3, "select": "uniform", "lr": 3e38}])", "test");
  expect_error(ErrorCode::kNonFinite, {"step", "optimizer.lr"}, [&] { (void)train(o); });
  EXPECT_EQ(checkpoint_steps(o.out).back(), 3) << "the steps after it made no numbers";
  const auto events = testing::metrics(o.out, "event");
  EXPECT_EQ(events.back().at("event").as_string(), "error");
  EXPECT_EQ(events.back().at("step").as_int(), 4);
}

// A full disk, as a limit on the size of a file: room for metrics, none for weights.
TEST(TrainDiskFull, KeepsTheEarlierCheckpointAndLeavesNothingBeside) {
  const TempDir dir;
  auto o = tiny_run(dir.path());
  o.out = dir / "run";
  o.stop_at = 4;
  const auto first = train(o);
  const auto files = testing::tensor_files(first.checkpoint);
  o.resume = true;
  o.stop_at = 8;
  const auto restore = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 16384;
  setrlimit(RLIMIT_FSIZE, &small);
  expect_error(ErrorCode::kIo, {"safetensors"}, [&] { (void)train(o); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, restore);

  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(4));
  EXPECT_EQ(testing::tensor_files(first.checkpoint), files);
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(o.out / "checkpoints")) ++entries;
  EXPECT_EQ(entries, 1u);
  EXPECT_EQ(testing::metrics(o.out, "event").back().at("event").as_string(), "error");
  EXPECT_EQ(train(o).last_step, 8) << "the run goes on once there is room";
}

}  // namespace
}  // namespace coppice::train
