#include "coppice/train/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/train/run.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::expect_error;
using ::testing::IsEmpty;
using testing::TempDir;

TrainOptions short_run(const TempDir& dir) {
  auto o = testing::tiny_run(dir.path());
  o.data_validation.clear();
  o.steps = 6;
  o.warmup = 0;
  o.out = dir / "run";
  return o;
}

void write(const fs::path& path, std::string_view text) {
  fs::create_directories(path.parent_path());
  io::write_file_atomically(path, text);
}

TEST(RunFolder, IsWrittenByOneRunAtATime) {
  const TempDir dir;
  auto o = short_run(dir);
  o.stop_at = 3;
  (void)train(o);
  const std::string log = read_file(o.out / kMetricsFile);
  {
    const auto other = hold_run(o.out);
    for (const bool resume : {true, false}) {
      o.resume = resume;
      o.stop_at = 5;
      expect_error(ErrorCode::kIo, {"run", "another process"}, [&] { (void)train(o); });
    }
  }
  EXPECT_EQ(read_file(o.out / kMetricsFile), log);
  o.resume = true;
  EXPECT_EQ(train(o).last_step, 5) << "the folder is free again";
}

TEST(RunFolder, IsHeldWhileTheRunTrains) {
  const TempDir dir;
  const auto o = short_run(dir);
  int tried = 0;
  (void)train(o, [&](uint64_t) {
    ++tried;
    expect_error(ErrorCode::kIo, {"another process"}, [&] { (void)hold_run(o.out); });
  });
  EXPECT_EQ(tried, 6);
}

TEST(NewRun, ReplacesNoFileOfOthers) {
  for (const char* name : {"config.toml", "metrics.jsonl", "events.out.tfevents.other"}) {
    const TempDir dir;
    const auto o = short_run(dir);
    write(o.out / name, "mine\n");
    expect_error(ErrorCode::kUsage, {"run", name, "another directory"}, [&] { (void)train(o); });
    EXPECT_EQ(read_file(o.out / name), "mine\n");
    EXPECT_FALSE(fs::exists(o.out / "checkpoints"));
  }
}

TEST(NewRun, BeginsAgainWhereTheSameRunEndedBeforeACheckpoint) {
  const TempDir dir;
  auto o = short_run(dir);
  (void)train(o);
  const auto once = testing::trajectory(o.out);
  fs::remove_all(checkpoint_path(o.out, 6));
  (void)train(o);
  EXPECT_EQ(testing::trajectory(o.out), once);
  fs::remove_all(checkpoint_path(o.out, 6));
  o.lr /= 2;
  expect_error(ErrorCode::kUsage, {"config.toml", "metrics.jsonl"}, [&] { (void)train(o); });
}

TEST(Checkpoints, AreFoldersOfThatNameWithTheStateOfTheRun) {
  const TempDir dir;
  auto o = short_run(dir);
  o.checkpoint_every = 1;
  o.keep_last = 1;
  o.stop_at = 3;
  (void)train(o);
  const fs::path checkpoints = o.out / "checkpoints";
  write(checkpoints / "step-00000001" / "notes", "mine");
  write(checkpoints / "step-000000050" / "notes", "nine digits");
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(3));
  o.resume = true;
  o.stop_at = 5;
  EXPECT_EQ(train(o).first_step, 3);
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(5));
  EXPECT_EQ(read_file(checkpoints / "step-00000001" / "notes"), "mine");
  EXPECT_TRUE(fs::exists(checkpoints / "step-000000050"));

  fs::create_directories(checkpoints / "step-00000006");
  o.stop_at = 0;
  expect_error(ErrorCode::kFormat, {"step-00000006", "trainer/trainer.json", "remove it"}, [&] { (void)train(o); });
  o.resume = false;
  o.out = dir / "new";
  fs::create_directories(o.out / "checkpoints" / "step-00000006");
  expect_error(ErrorCode::kFormat, {"step-00000006", "remove it"}, [&] { (void)train(o); });
}

TEST(PruneCheckpoints, RemovesNoneOfAnotherStep) {
  const TempDir dir;
  for (const int64_t step : {1, 2, 3, 4}) {
    write(checkpoint_path(dir.path(), step) / "trainer" / "trainer.json", R"({"step": 1})");
  }
  prune_checkpoints(dir.path(), {.last = 1});
  EXPECT_THAT(checkpoint_steps(dir.path()), ElementsAre(2, 3, 4));
  EXPECT_THAT(checkpoint_steps(dir / "nothing"), IsEmpty());
}

}  // namespace
}  // namespace coppice::train
