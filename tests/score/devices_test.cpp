// Scores on a device whose memory the host cannot read: they are the CPU's, and layers larger than memory take turns.
#include "tests/guarded/devices.h"

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "coppice/score/finite_losses.h"
#include "coppice/score/router_rows.h"
#include "coppice/score/score.h"
#include "coppice/score/spherical_k_means.h"
#include "tests/guarded/guarded_device.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::score {
namespace {

using guarded::kGuarded;
using testing::TempDir;

struct Fixture {
  Fixture() { at::set_num_threads(1); }  // too little work for more

  families::Model model(std::string_view family, models::ModelSizes sizes = {}) const {
    sizes.vocab_size = 64;
    const auto directory = dir / std::string(family);
    if (!std::filesystem::exists(directory)) testing::tiny_model(directory, family, {.sizes = sizes});
    return families::open_model(directory);
  }

  TempDir dir;
  std::vector<data::TokenFile> tokens{data::TokenFile::open(testing::write_tokens(dir / "t", 64, 10, 100))};
  ScoreSettings settings{.batches = 3, .batch_tokens = 160, .sequence_length = 16, .seed = 4};
};

/// Both kernels round in f32: equal to a share of the largest value of the layer.
void expect_near(const std::map<int64_t, std::vector<double>>& found,
                 const std::map<int64_t, std::vector<double>>& wanted, double share, const std::string& what) {
  ASSERT_EQ(found.size(), wanted.size()) << what;
  for (const auto& [layer, values] : wanted) {
    ASSERT_EQ(found.at(layer).size(), values.size()) << what;
    const double largest = std::ranges::max(values);
    for (size_t e = 0; e < values.size(); ++e) {
      EXPECT_NEAR(found.at(layer)[e], values[e], share * largest) << what << ", layer " << layer << ", expert " << e;
    }
  }
}

void expect_near(const plan::Scores& found, const plan::Scores& wanted, double share) {
  ASSERT_EQ(found.metrics.size(), wanted.metrics.size());
  for (const auto& [name, metric] : wanted.metrics) {
    const auto& other = found.metrics.at(name);
    expect_near(other.fc1.sum, metric.fc1.sum, share, name + " of fc1");
    expect_near(other.fc2.sum, metric.fc2.sum, share, name + " of fc2");
    expect_near(other.fc1.sum_sq, metric.fc1.sum_sq, 2 * share, name + " of fc1, squared");
    expect_near(other.fc2.sum_sq, metric.fc2.sum_sq, 2 * share, name + " of fc2, squared");
  }
  for (const auto& [layer, sum] : wanted.gate_concentration.sum) {
    EXPECT_NEAR(found.gate_concentration.sum.at(layer), sum, share * sum);
  }
}

// With a selection bias and a shared expert; with biases of experts; with neither. Moments of the batches and of Adam.
TEST(ScoresOnADevice, AreThoseOfTheCpu) {
  Fixture f;
  for (const std::string_view family : {"glm4_moe", "gpt_oss", "qwen3_moe"}) {
    SCOPED_TRACE(family);
    const auto model = f.model(family);
    f.settings.device = guarded::kCpu;
    const auto wanted = score_model(model, f.tokens, f.settings);
    f.settings.device = kGuarded;
    expect_near(score_model(model, f.tokens, f.settings), wanted, 1e-4);
  }
  testing::write_trainer(f.dir / "glm4_moe");
  const auto model = f.model("glm4_moe");
  const auto found = score_model(model, f.tokens, f.settings);
  f.settings.device = guarded::kCpu;
  EXPECT_EQ(found.second_moment, "trainer");
  expect_near(found, score_model(model, f.tokens, f.settings), 1e-4);
}

TEST(ScoresOnADevice, KeepDocumentsApart) {
  Fixture f;
  f.tokens = {data::TokenFile::open(testing::write_tokens(f.dir / "short", 64, 150, 7))};
  f.settings.reset_attention = true;
  const auto wanted = score_model(f.model("glm4_moe"), f.tokens, f.settings);
  f.settings.device = kGuarded;
  expect_near(score_model(f.model("glm4_moe"), f.tokens, f.settings), wanted, 1e-4);
}

TEST(ScoresOnADevice, ChangeNoBitWithTheMemory) {
  Fixture f;
  const auto model = f.model("glm4_moe", {.num_layers = 5, .first_dense_layers = 1});
  f.settings.device = kGuarded;
  for (const auto dtype : {nn::ComputeDtype::kF32, nn::ComputeDtype::kBf16}) {
    f.settings.dtype = dtype;
    f.settings.max_memory_bytes = 0;
    f.settings.out.clear();
    const auto whole = score_model(model, f.tokens, f.settings).to_json().dump();
    for (const bool on_disk : {false, true}) {
      f.settings.out = on_disk ? f.dir / "scores.json" : std::filesystem::path();
      for (const uint64_t bytes : {uint64_t{1}, uint64_t{400'000}}) {
        f.settings.max_memory_bytes = bytes;
        EXPECT_EQ(score_model(model, f.tokens, f.settings).to_json().dump(), whole) << bytes;
      }
    }
  }
}

int64_t peak_bytes_of(const auto& f) {
  guarded::reset_peak();
  const auto before = guarded::live_bytes();
  f();
  return guarded::peak_bytes() - before;
}

TEST(ScoresOnADevice, HoldOneGroupOfLayersThere) {
  Fixture f;
  f.settings.device = kGuarded;
  f.settings.max_memory_bytes = 1;  // one layer at a time
  const auto peak = [&](std::string_view family, int64_t layers) {
    const auto model = f.model(family, {.model_dim = 128, .num_layers = layers, .head_dim = 32, .expert_width = 128});
    return peak_bytes_of([&] { (void)score_model(model, f.tokens, f.settings); });
  };
  const auto few = peak("qwen3_moe", 2), many = peak("olmoe", 8);
  EXPECT_LT(many, few + few / 10) << "four times as many layers";
  f.settings.max_memory_bytes = 0;
  EXPECT_GT(peak("olmoe", 8), 3 * many) << "all at once";
}

// Of 20 passes of a batch each, in f32, where the MoE layer itself waits (kernels/moe.h).
TEST(ScoresOnADevice, WaitForTheDeviceSeldom) {
  Fixture f;
  f.settings.device = kGuarded;
  f.settings.batches = 20;
  f.settings.batch_tokens = 32;
  for (const int64_t layers : {1, 3}) {
    const auto model = f.model(layers == 1 ? "qwen3_moe" : "olmoe", {.num_layers = layers});
    const long before = guarded::counters().copies_to_host;
    (void)score_model(model, f.tokens, f.settings);
    const long of_passes = 20 * layers, sums = 3 * layers;  // the losses are read as numbers, which are not counted
    EXPECT_EQ(guarded::counters().copies_to_host - before, of_passes + sums) << layers;
  }
}

TEST(FiniteLosses, AreReadSeldomAndOneThatIsNotIsRefused) {
  for (const auto device : {guarded::kCpu, kGuarded}) {
    FiniteLosses losses;
    const auto at_device = [&](float value) { return at::full({}, value, at::TensorOptions().device(device)); };
    for (int i = 0; i < 15; ++i) losses.add(at_device(i == 3 ? NAN : 1.0f));
    testing::expect_error(ErrorCode::kNonFinite, {"score", "nan"}, [&] { losses.add(at_device(1)); });
    losses.add(at_device(1));
    losses.finish();
    losses.finish();
    losses.add(at_device(INFINITY));
    testing::expect_error(ErrorCode::kNonFinite, {"inf"}, [&] { losses.finish(); });
  }
}

TEST(KMeansOnADevice, WaitsForItOnceACentreAndAStep) {
  at::manual_seed(1);
  const auto x_TD = at::randn({60, 8}).to(kGuarded);
  const long before = guarded::counters().copies_to_host;
  (void)spherical_k_means(x_TD, {.clusters = 5, .steps = 1});
  EXPECT_EQ(guarded::counters().copies_to_host - before, 4 + 1);
}

TEST(RouterRowsOnADevice, AreThoseOfTheCpu) {
  const Fixture f;
  const auto model = f.model("llama");
  RouterRowSettings settings{.clusters = 4, .tokens = 512, .sequence_length = 16, .seed = 2};
  const auto wanted = cluster_inputs(model, f.tokens, settings);
  settings.device = kGuarded;
  const auto found = cluster_inputs(model, f.tokens, settings);
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t layer = 0; layer < wanted.size(); ++layer) {
    EXPECT_EQ(found[layer].clusters.sizes, wanted[layer].clusters.sizes);
    EXPECT_TRUE(found[layer].row_GD.to(at::kCPU).allclose(wanted[layer].row_GD, 1e-4, 1e-5));
  }
  write_router_rows(f.dir / "rows", found);
  EXPECT_TRUE(is_router_rows(f.dir / "rows"));
}

}  // namespace
}  // namespace coppice::score
