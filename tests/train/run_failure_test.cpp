// What goes wrong in mid-run loses no step, and is told.

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "coppice/save/trainer_state.h"
#include "coppice/train/run.h"
#include "coppice/train/run_directory.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::expect_error;
using testing::TempDir;

// Called after step `step`.
StepObserver after(int64_t step, const std::function<void()>& act) {
  return [left = step, act](uint64_t) mutable {
    if (--left == 0) act();
  };
}

void cut(const fs::path& file) { fs::resize_file(file, 10); }

void expect_error_event(const fs::path& run, int64_t step) {
  const auto last = testing::metrics(run, "event").back();
  EXPECT_EQ(last.at("event").as_string(), "error");
  EXPECT_EQ(last.at("step").as_int(), step);
  EXPECT_EQ(testing::metrics(run, "loss").back().at("step").as_int(), step) << "the step has its line";
}

TEST(TrainLastStep, IsSafeBeforeItIsValidated) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.out = dir / "run";
  const fs::path tokens = dir / "val.bin";
  const std::string good = read_file(tokens);
  expect_error(ErrorCode::kIo, {"val"}, [&] { (void)train(o, after(19, [&] { cut(tokens); })); });
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(20));
  expect_error_event(o.out, 20);
  EXPECT_TRUE(testing::metrics(o.out, "validation/val").empty());

  io::write_file_atomically(tokens, good);
  o.resume = true;
  const double loss = train(o).validation_loss.at("val");
  const auto lines = testing::metrics(o.out, "validation/val");
  ASSERT_EQ(lines.size(), 1u) << "what was missing is made up for";
  EXPECT_EQ(lines[0].at("step").as_int(), 20);
  EXPECT_EQ(lines[0].at("validation/val").as_double(), loss);
  (void)train(o);
  EXPECT_EQ(testing::metrics(o.out, "validation/val").size(), 1u) << "once";
}

TEST(TrainMidRun, KeepsTheStepsBeforeAnErrorThatIsNotTheirs) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.validate_every = 5;
  o.out = dir / "validation";
  expect_error(ErrorCode::kIo, {"val"}, [&] { (void)train(o, after(7, [&] { cut(dir / "val.bin"); })); });
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(10)) << "without checkpoint.every";
  expect_error_event(o.out, 10);

  o.data_validation.clear();
  o.out = dir / "data";
  expect_error(ErrorCode::kIo, {"train"}, [&] { (void)train(o, after(7, [&] { cut(dir / "train.bin"); })); });
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(7));
  expect_error_event(o.out, 7);
}

TEST(TrainDiverged, LeavesNoCheckpointOfWhatIsNoNumber) {
  const TempDir dir;
  for (const char* dtype : {"f32", "bf16"}) {
    for (const bool beside : {true, false}) {
      auto o = testing::tiny_run(dir.path());
      o.dtype = dtype;
      o.out = dir / (std::string(dtype) + (beside ? "-beside" : ""));
      o.warmup = 0;
      o.checkpoint_every = 1;
      o.checkpoint_beside = beside;
      o.data_validation.clear();  // which would find it too
      o.stop_at = 1;
      o.lr = 3e38;
      expect_error(ErrorCode::kNonFinite, {"checkpoint", "wanted finite numbers", "optimizer.lr"},
                   [&] { (void)train(o); });
      EXPECT_THAT(checkpoint_steps(o.out), ElementsAre()) << dtype;
    }
  }
}

TEST(TrainMidRun, TellsWhatLibtorchThrowsAsAnError) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.out = dir / "libtorch";
  const auto no_memory = [] {
    TORCH_CHECK(false, "DefaultCPUAllocator: not enough memory: you tried to allocate memory");
  };
  expect_error(ErrorCode::kIo, {"out of memory", "recompute"}, [&] { (void)train(o, after(4, no_memory)); });
  expect_error_event(o.out, 4);
  EXPECT_THAT(checkpoint_steps(o.out), ElementsAre(4));
  o.out = dir / "system";
  expect_error(ErrorCode::kIo, {"out of memory"}, [&] { (void)train(o, after(4, [] { throw std::bad_alloc(); })); });
  expect_error_event(o.out, 4);
}

TEST(TrainValidationFiles, OfNoPredictionAreRefusedBeforeTheFirstStep) {
  const TempDir dir;
  for (const uint64_t tokens : {0, 1}) {
    auto o = testing::tiny_run(dir.path());
    o.out = dir / "run";
    o.data_validation = {testing::write_tokens(dir / std::to_string(tokens), 32, tokens, 1)};
    expect_error(ErrorCode::kUsage, {"data.validation", "2 or more"}, [&] { (void)train(o); });
    EXPECT_FALSE(fs::exists(o.out));
  }
}

TEST(TrainValidationFiles, ShorterThanAWindowGiveALoss) {
  const TempDir dir;
  for (const uint64_t tokens : {2, 5, 16, 17}) {
    auto o = testing::tiny_run(dir.path());
    o.steps = 2;
    o.warmup = 0;
    o.validation_tokens = 1;
    o.data_validation = {testing::write_tokens(dir / std::to_string(tokens), 32, 1, tokens)};
    EXPECT_GT(train(o).validation_loss.begin()->second, 0) << tokens << " tokens";
  }
}

TEST(TrainNumbers, OutOfRangeAreRefused) {
  const TempDir dir;
  const auto refused = [&](std::initializer_list<const char*> said, const std::function<void(TrainOptions&)>& change) {
    auto o = testing::tiny_run(dir.path());
    o.stop_at = 1;
    change(o);
    expect_error(ErrorCode::kUsage, said, [&] { (void)train(o); });
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const double epsilon : {0.0, -1e-8, 1e-50, 1e300, kInfinity, std::nan("")}) {
    refused({"optimizer.epsilon", "above 0"}, [&](auto& o) { o.epsilon = epsilon; });
  }
  refused({"balance.rate", "f32"}, [](auto& o) { o.balance_rate = 1e39; });
  refused({"optimizer.lr", "f32"}, [](auto& o) { o.lr = 1e39; });
  refused({"optimizer.weight_decay", "f32"}, [](auto& o) { o.weight_decay = 1e39; });
  refused({"growth 1", "balance_rate"}, [](auto& o) {
    o.growth =
        Json::parse(R"([{"at_step": 4, "select": "uniform", "balance_rate": 1e39, "balance_steps": 2}])", "test");
  });
  for (const double bad : {kInfinity, -1.0, std::nan("")}) {
    refused({"optimizer.weight_decay"}, [&](auto& o) { o.weight_decay = bad; });
    refused({"optimizer.clip"}, [&](auto& o) { o.clip = bad; });
    refused({"optimizer.spike_limit"}, [&](auto& o) { o.spike_limit = bad; });
    refused({"optimizer.lr"}, [&](auto& o) { o.lr = bad; });
    refused({"balance.rate"}, [&](auto& o) { o.balance_rate = bad; });
    refused({"balance.z_coef"}, [&](auto& o) { o.z_coef = bad; });
  }
  refused({"train.threads", "at most"}, [](auto& o) { o.threads = 999'999; });
  refused({"optimizer.beta2"}, [](auto& o) { o.beta2 = 1; });
  refused({"schedule.warmup"}, [](auto& o) { o.warmup = kMost; });
  refused({"schedule.warmup"}, [](auto& o) { o.warmup = -2; });
  refused({"train.steps", "at most"}, [](auto& o) { o.steps = int64_t{1} << 58; });
  refused({"train.steps"}, [](auto& o) { o.steps = kMost; });
  refused({"train.batch_tokens"}, [](auto& o) { o.batch_tokens = kMost - 15; });
  refused({"handover.steps"}, [](auto& o) {
    o.handover = "release";
    o.handover_steps = kMost;
  });
  for (const char* key : {"rewarmup", "balance_steps", "score_batches"}) {
    refused({"growth 1", key}, [&](auto& o) {
      o.growth = Json::parse(R"([{"at_step": 9, ")" + std::string(key) + R"(": 9223372036854775807}])", "test");
    });
  }
}

// Experts that no token has come to divide their zero moments by epsilon.
TEST(TrainNumbers, ExpertsWithoutTokensStayFinite) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.num_experts = 64;
  o.top_k = 1;
  o.epsilon = std::numeric_limits<float>::min();
  o.steps = 4;
  EXPECT_TRUE(std::isfinite(train(o).loss));
}

}  // namespace
}  // namespace coppice::train
