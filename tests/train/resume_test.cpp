// A run that is stopped and resumed is the undisturbed run: its numbers, its warnings, its end.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/train/resumed_position.h"
#include "coppice/train/run.h"
#include "coppice/train/run_directory.h"
#include "coppice/train/run_settings.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;

// In one go, and in parts that end after each of `stops`.
void expect_same_record(const TrainOptions& options, const TempDir& dir, const std::vector<int64_t>& stops) {
  auto whole = options;
  whole.out = dir / "whole";
  (void)train(whole);
  auto parts = options;
  parts.out = dir / "parts";
  for (const int64_t stop : stops) {
    parts.stop_at = stop;
    (void)train(parts);
    parts.resume = true;
  }
  parts.stop_at = 0;
  const auto last = train(parts);
  EXPECT_EQ(testing::record(parts.out), testing::record(whole.out));
  EXPECT_EQ(testing::tensor_files(last.checkpoint), testing::tensor_files(checkpoint_path(whole.out, last.last_step)));
}

std::vector<Json> events(const fs::path& run, std::string_view name) {
  std::vector<Json> out;
  for (Json& line : testing::metrics(run, "event")) {
    if (line.at("event").as_string() == name) out.push_back(std::move(line));
  }
  return out;
}

TEST(TrainResumeRecord, HasEveryWarningOfTheUndisturbedRunOnce) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.num_experts = 32;
  o.top_k = 1;
  o.balance = "none";
  o.dead_after = 7;
  o.steps = 30;
  o.validate_every = 1;
  expect_same_record(o, dir, {3, 5, 9, 22});
  EXPECT_FALSE(events(dir / "whole", "dead_experts").empty()) << "or there is nothing to compare";
}

TEST(TrainResumeRecord, HasEveryGrowthOnce) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.growth = Json::parse(R"([{"at_step": 6, "experts": "6", "score_batches": 2},
                             {"at_step": 10, "experts": "2x", "select": "uniform"}])",
                         "test");
  o.steps = 14;
  o.validate_every = 1;
  expect_same_record(o, dir, {6, 8, 10, 11});
  EXPECT_EQ(events(dir / "whole", "growth").size(), 2u);
}

TEST(TrainResumeRecord, GoesOnWithRandomTokens) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.data_train.clear();
  o.random_tokens = true;
  o.steps = 8;
  o.validate_every = 1;
  expect_same_record(o, dir, {3});
}

TEST(TrainResumeRecord, StopsAtTheSpikeThatStoppedTheRun) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.steps = 100;
  o.spike_limit = 1.001;
  o.out = dir / "run";
  const auto stopped_at = [&] {
    try {
      (void)train(o);
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kNonFinite);
      return std::string(error.what());
    }
    return std::string("not at all");
  };
  const std::string first = stopped_at();
  EXPECT_THAT(first, ::testing::HasSubstr("optimizer.spike_limit"));
  o.resume = true;
  EXPECT_EQ(stopped_at(), first);
  o.spike_limit = 100;
  o.stop_at = checkpoint_steps(o.out).back() + 2;  // without checkpoint.every: the step before the spike is kept
  EXPECT_EQ(train(o).last_step, o.stop_at) << "a higher limit lets it go on";
}

std::string sha256_of(const std::string& text) {
  Sha256 sha;
  sha.add(text);
  return sha.hex();
}

// Of a run that grew at steps 4 and 12 and is at step 8.
struct GrownRun {
  TrainOptions options;  // to resume it
  fs::path state;        // trainer.json
};

GrownRun grown_run(const TempDir& dir) {
  auto o = testing::tiny_run(dir.path());
  o.growth = Json::parse(R"([{"at_step": 4, "experts": "6", "select": "uniform"},
                             {"at_step": 12, "experts": "2x", "select": "uniform"}])",
                         "test");
  o.out = dir / "run";
  o.stop_at = 8;
  const auto state = train(o).checkpoint / "trainer" / "trainer.json";
  o.resume = true;
  o.stop_at = 10;
  return {o, state};
}

TEST(TrainResumeSettings, ThatAreLeftOutAreNamed) {
  const TempDir dir;
  auto [o, state] = grown_run(dir);
  const Json growth = std::exchange(o.growth, Json());
  expect_error(ErrorCode::kUsage, {"train.resume", "growth (", "now absent"}, [&] { (void)train(o); });
  o.growth = growth;
  EXPECT_EQ(train(o).last_step, 10);
}

TEST(TrainResumeData, IsKnownByItsContent) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.out = dir / "run";
  o.stop_at = 3;
  const auto path = train(o).checkpoint / "trainer" / "trainer.json";
  const std::string good = read_file(dir / "train.bin");
  std::string rotated = good;
  std::ranges::rotate(rotated, rotated.begin() + 200);
  io::write_file_atomically(dir / "train.bin", rotated);
  o.resume = true;
  o.stop_at = 5;
  expect_error(ErrorCode::kUsage, {"data.train", "train.bin has the same number of tokens"}, [&] { (void)train(o); });

  Json old = Json::read(path);  // as coppice 0.1.0 wrote it
  Json::Array files = old.at("data").items();
  EXPECT_EQ(files.at(0).at("sha256").as_string(), sha256_of(good));
  files.at(0).erase("sha256");
  old["data"] = Json::array(std::move(files));
  io::write_file_atomically(path, old.dump());
  EXPECT_EQ(train(o).last_step, 5);
  EXPECT_EQ(Json::read(checkpoint_path(o.out, 5) / "trainer" / "trainer.json").at("data").items().at(0).at("sha256"),
            Json(sha256_of(rotated)));
}

TEST(TrainResumePosition, IsRefusedWhereTheRunDoesNotComeToIt) {
  const TempDir dir;
  const auto [o, path] = grown_run(dir);
  const Json good = Json::read(path);
  constexpr int64_t kMost = int64_t{1} << 53;
  const std::vector<std::pair<const char*, std::vector<int64_t>>> wrong{
      {"growths", {0, 2, 3, kMost}}, {"grown_at", {-1, 0, 5, 8, kMost}}, {"next_sample", {0, 63, 65, kMost}},
      {"released", {1, kMost}},      {"wake_steps", {1, kMost}},         {"tokens_seen", {0, 1023, kMost}}};
  for (const auto& [key, values] : wrong) {
    for (const int64_t value : values) {
      SCOPED_TRACE(cat(key, " ", value));
      Json state = good;
      state[key] = value;
      io::write_file_atomically(path, state.dump());
      expect_error(ErrorCode::kFormat, {"trainer.json", key, "earlier checkpoint"}, [&] { (void)train(o); });
    }
  }
  for (const size_t count : {0, 11}) {
    Json state = good;
    state["recent_losses"] = Json::array_of(std::vector<double>(count, 1.0));
    io::write_file_atomically(path, state.dump());
    expect_error(ErrorCode::kFormat, {"trainer.json", "recent_losses", "1 to 10"}, [&] { (void)train(o); });
  }
  io::write_file_atomically(path, good.dump());
  EXPECT_EQ(train(o).last_step, 10);
}

TEST(TrainResumePosition, IsThatOfItsFolder) {
  const TempDir dir;
  const auto [o, path] = grown_run(dir);
  auto state = save::TrainerState::read(checkpoint_path(o.out, 8));
  const RunSettings settings = check_options(o);
  check_position(checkpoint_path(o.out, 8), state, settings);
  for (const int64_t step : {5, 7, 9}) {
    state.position.step = step;
    expect_error(ErrorCode::kFormat, {"'step'", "step-00000008"},
                 [&] { check_position(checkpoint_path(o.out, 8), state, settings); });
  }
}

TEST(TrainResumeLength, KeepsTheRatesBehindIt) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.warmup = -1;  // 2 of 20 steps, but 8 of 80
  o.out = dir / "run";
  o.stop_at = 5;
  (void)train(o);
  o.resume = true;
  o.stop_at = 0;
  o.steps = 0;
  o.tokens = 80 * 128;
  o.stop_at = 8;
  (void)train(o);
  const auto lines = testing::metrics(o.out, "lr");
  ASSERT_EQ(lines.size(), 8u);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].at("lr").as_double(), i == 0 ? o.lr / 2 : o.lr) << "step " << i + 1;
  }
  o.warmup = 8;
  expect_error(ErrorCode::kUsage, {"schedule.warmup (2 before, now 8)"}, [&] { (void)train(o); });
}

TEST(TrainResumeLength, RefusesOneThatChangesThem) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.min_lr_ratio = 0;
  o.anneal_share = 0.3;
  const auto goes_on = [&](const std::string& schedule, int64_t stop, int64_t steps) {
    auto run = o;
    run.schedule = schedule;
    run.out = dir / cat(schedule, stop);
    run.stop_at = stop;
    (void)train(run);
    run.resume = true;
    run.stop_at = stop + 1;
    run.steps = steps;
    (void)train(run);
  };
  goes_on("constant", 3, 50);
  goes_on("constant", 4, 6);
  goes_on("wsd", 14, 40);  // the anneal of 20 steps begins after the 14th
  goes_on("wsd", 4, 10);
  expect_error(ErrorCode::kUsage, {"train.steps: 20 before, now 40", "step 15", "train.start=continue"},
               [&] { goes_on("wsd", 15, 40); });
  expect_error(ErrorCode::kUsage, {"train.steps: 20 before, now 14", "step 11"}, [&] { goes_on("wsd", 12, 14); });
  expect_error(ErrorCode::kUsage, {"train.steps: 20 before, now 40", "step 3"}, [&] { goes_on("cosine", 5, 40); });
}

TEST(TrainResumeLength, TakesACheckpointThatDoesNotSayIt) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.warmup = -1;
  o.out = dir / "run";
  o.stop_at = 5;
  const auto path = train(o).checkpoint / "trainer" / "trainer.json";
  Json state = Json::read(path);  // as coppice 0.1.0 wrote it
  state.erase("watch");
  state["settings"].erase("train.steps");
  state["settings"]["schedule.warmup"] = -1;
  io::write_file_atomically(path, state.dump());
  o.resume = true;
  o.stop_at = 7;
  EXPECT_EQ(train(o).last_step, 7);
}

TEST(TrainContinueLength, CountsTheTokensBehindIt) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.stop_at = 5;
  o.out = dir / "trunk";
  o.model_path = train(o).checkpoint;  // 40 windows of 16 tokens
  o.start = "continue";
  o.stop_at = 6;
  for (const auto& [length, behind] :
       std::vector<std::pair<int64_t, uint64_t>>{{16, 40}, {32, 20}, {8, 80}, {64, 10}, {128, 5}}) {
    o.sequence_length = length;
    o.out = dir / cat("run", length);
    const auto state = save::TrainerState::read(train(o).checkpoint);
    EXPECT_EQ(state.position.next_sample, behind + 128 / static_cast<uint64_t>(length)) << length;
    EXPECT_EQ(state.position.tokens_seen, 6u * 128);
  }
  o.sequence_length = o.batch_tokens = 50;
  o.out = dir / "ragged";
  EXPECT_EQ(save::TrainerState::read(train(o).checkpoint).position.next_sample, 13u + 1) << "640 tokens are 12.8 windows";
}

TEST(WatchMemory, IsRefusedWhereItIsOfAnotherModel) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.out = dir / "run";
  o.stop_at = 3;
  const auto path = train(o).checkpoint / "trainer" / "trainer.json";
  const Json good = Json::read(path);
  o.resume = true;
  o.stop_at = 0;
  for (const char* bad :
       {R"({"grad_norms": [1, -1], "idle": {}})", R"({"grad_norms": [], "idle": {"0": [1, 2, 3]}})",
        R"({"grad_norms": [], "idle": {"7": [0, 0, 0, 0]}})", R"({"idle": {}})", R"({"grad_norms": "1", "idle": {}})",
        R"({"grad_norms": [], "idle": {"1": [0, -4, 0, 0]}})"}) {
    SCOPED_TRACE(bad);
    Json state = good;
    state["watch"] = Json::parse(bad, "test");
    io::write_file_atomically(path, state.dump());
    expect_error(ErrorCode::kFormat, {"trainer.json"}, [&] { (void)train(o); });
  }
}

}  // namespace
}  // namespace coppice::train
