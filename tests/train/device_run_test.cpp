// Whole runs on a device whose memory the host cannot read: growth, handover, checkpoints, resuming.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <span>

#include "coppice/io/safetensors.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/nn/host.h"
#include "coppice/save/checkpoint.h"
#include "coppice/save/checkpoint_writer.h"
#include "coppice/train/growth.h"
#include "coppice/train/run.h"
#include "coppice/train/run_directory.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/guarded_device.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;

constexpr const char* kTwoGrowths = R"([
    {"at_step": 6, "experts": "6", "score_batches": 2, "expert_init": "copy_noise", "rewarmup": 2},
    {"at_step": 12, "experts": "2x", "select": "uniform", "optimizer_state": "reset"}])";

struct Kind {
  const char* name;
  const char *family, *dtype, *handover, *balance;
};

class DeviceRun : public ::testing::TestWithParam<Kind> {
 protected:
  TrainOptions options(const char* device, const char* out) {
    auto o = testing::tiny_run(dir.path());
    o.model_family = GetParam().family;
    o.dtype = o.moments = GetParam().dtype;
    o.handover = GetParam().handover;
    o.handover_steps = 4;
    o.balance = GetParam().balance;
    o.growth = Json::parse(kTwoGrowths, "test");
    o.validate_every = 5;
    o.lr = 1e-3;
    o.reset_attention = true;
    o.device = device;
    o.out = dir / out;
    return o;
  }
  // Runs in parts that end after each of `stops`, on the devices in turn.
  fs::path in_parts(const char* out, const std::vector<int64_t>& stops, std::span<const char* const> devices) {
    auto o = options(devices[0], out);
    for (size_t i = 0; i <= stops.size(); ++i) {
      o.device = devices[i % devices.size()];
      o.stop_at = i < stops.size() ? stops[i] : 0;
      (void)train(o);
      o.resume = true;
    }
    return o.out;
  }

  TempDir dir;
};
INSTANTIATE_TEST_SUITE_P(Kinds, DeviceRun,
                         ::testing::Values(Kind{"Release", "qwen3_moe", "f32", "release", "aux"},
                                           Kind{"ReleaseInBf16", "glm4_moe", "bf16", "release", "loss_free"},
                                           Kind{"Dormant", "glm4_moe", "f32", "dormant", "loss_free"}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

// Rounding differs. After an expansion a token that is nearly even between two copies may choose the other.
void expect_close_losses(const fs::path& found_run, const fs::path& wanted_run, std::string_view dtype) {
  const auto wanted = testing::metrics(wanted_run, "loss"), found = testing::metrics(found_run, "loss");
  ASSERT_EQ(wanted.size(), 20u);
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double tolerance = dtype == "bf16" || i >= 6 ? 0.03 : 1e-4;
    EXPECT_NEAR(found[i].at("loss").as_double(), wanted[i].at("loss").as_double(), tolerance) << "step " << i + 1;
    ASSERT_EQ(found[i].members().size(), wanted[i].members().size()) << "the same metrics";
  }
}

TEST_P(DeviceRun, LearnsWhatTheCpuLearns) {
  const long before = guarded::counters().fallbacks;
  const auto here = options("cpu", "here"), there = options("privateuseone:0", "there");
  (void)train(here);
  EXPECT_EQ(guarded::counters().fallbacks, before);
  (void)train(there);
  EXPECT_GT(guarded::counters().fallbacks, before);
  expect_close_losses(there.out, here.out, GetParam().dtype);
  const auto last = checkpoint_path(there.out, 20);
  EXPECT_EQ(families::open_model(last).config.num_experts, 12);
}

// With libtorch's operators on both only attention rounds differently: on the CPU libtorch has a fused kernel for it. The
// losses then stay close over both expansions.
TEST_P(DeviceRun, LearnsWhatLibtorchLearnsOnTheCpu) {
  const auto here = options("cpu", "here"), there = options("privateuseone:0", "there");
  kernels::detail::libtorch_everywhere = true;
  (void)train(here);
  kernels::detail::libtorch_everywhere = false;
  (void)train(there);
  const auto wanted = testing::metrics(here.out, "loss"), found = testing::metrics(there.out, "loss");
  ASSERT_EQ(wanted.size(), 20u);
  ASSERT_EQ(found.size(), wanted.size());
  const double tolerance = std::string_view(GetParam().dtype) == "bf16" ? 3e-3 : 1e-4;
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(found[i].at("loss").as_double(), wanted[i].at("loss").as_double(), tolerance) << "step " << i + 1;
  }
}

TEST_P(DeviceRun, ResumesThereBitForBit) {
  const auto whole = options("privateuseone:0", "whole");
  (void)train(whole);
  constexpr const char* kThere[] = {"privateuseone:0"};
  const auto parts = in_parts("parts", {3, 6, 9, 12, 14}, kThere);
  const auto of_steps = [](const fs::path& run) {
    std::vector<std::string> out;
    for (const Json& line : testing::metrics(run, "grad_norm")) out.push_back(line.at("grad_norm").dump());
    return out;
  };
  EXPECT_EQ(of_steps(parts), of_steps(whole.out));
  EXPECT_EQ(testing::tensor_files(checkpoint_path(parts, 20)), testing::tensor_files(checkpoint_path(whole.out, 20)));
}

TEST_P(DeviceRun, ResumesOnAnotherDevice) {
  const auto here = options("cpu", "here");
  (void)train(here);
  constexpr const char* kInTurn[] = {"cpu", "privateuseone:0", "privateuseone:1"};
  const auto moved = in_parts("moved", {4, 8, 13}, kInTurn);
  expect_close_losses(moved, here.out, GetParam().dtype);
}

TEST_P(DeviceRun, KeepsTheBytesOfACheckpointOnItsWayThroughTheDevice) {
  auto o = options("cpu", "run");
  o.growth = Json();
  o.handover = "none";
  o.handover_steps = 0;
  o.steps = 4;
  const auto checkpoint = train(o).checkpoint;
  const auto model = families::open_model(checkpoint);
  const auto dtype = nn::compute_dtype(GetParam().dtype);
  const auto state = save::TrainerState::read(checkpoint);
  const auto restored = save::load_checkpoint(model, dtype, guarded::kGuarded);
  EXPECT_EQ(restored.optimizer.states()[0].exp_avg.device(), guarded::kGuarded);
  save::write_checkpoint(dir / "direct", save::saved_state(restored.model, restored.optimizer, save::Copies::kView),
                         state, {});
  EXPECT_EQ(testing::tensor_files(dir / "direct"), testing::tensor_files(checkpoint));

  // From a copy on the host: nothing is copied on the device, and what happens there afterwards is not in it.
  save::CheckpointWriter writer;
  const long allocations = guarded::counters().allocations;
  writer.write(dir / "beside", restored.model, restored.optimizer, state, {}, /*background=*/true);
  EXPECT_EQ(guarded::counters().allocations, allocations);
  for (const auto& p : restored.model.parameters()) p.master.detach().zero_();
  (void)writer.finished(true);
  EXPECT_EQ(testing::tensor_files(dir / "beside"), testing::tensor_files(checkpoint));
}

// The layer that grows is there twice, the others once.
TEST_P(DeviceRun, GrowsWithoutASecondModelOnTheDevice) {
  auto o = options("cpu", "run");
  o.growth = Json();
  o.handover = "none";
  o.handover_steps = 0;
  o.steps = 4;
  o.num_layers = 8;
  const auto checkpoint = train(o).checkpoint;
  const auto model = families::open_model(checkpoint);
  plan::GrowthOptions growth;
  growth.experts = plan::ExpertCount::from_text("2x");
  const auto plan = plan::make_plan(model.config, growth, nullptr);
  const auto dtype = nn::compute_dtype(GetParam().dtype);

  auto there = save::load_checkpoint(model, dtype, guarded::kGuarded);
  const auto before = guarded::live_bytes();
  guarded::reset_peak();
  grow(there.model, there.optimizer, plan);
  const auto after = guarded::live_bytes(), most = guarded::peak_bytes();
  EXPECT_GT(after, before);
  EXPECT_LE(most - after, before / 4) << "of 8 layers";

  auto here = save::load_checkpoint(model, dtype);
  grow(here.model, here.optimizer, plan);
  const auto state = save::TrainerState::read(checkpoint);
  save::write_checkpoint(dir / "here", save::saved_state(here.model, here.optimizer, save::Copies::kView), state, {});
  save::write_checkpoint(dir / "there", save::saved_state(there.model, there.optimizer, save::Copies::kView), state,
                         {});
  EXPECT_EQ(testing::tensor_files(dir / "there"), testing::tensor_files(dir / "here"));
}

TEST(DeviceRunOption, RefusesADeviceThatIsNotThere) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.device = "privateuseone:7";
  testing::expect_error(ErrorCode::kUsage, {"train.device", "'privateuseone:7'", "privateuseone:1", "auto"},
                        [&] { (void)train(o); });
}

}  // namespace
}  // namespace coppice::train
