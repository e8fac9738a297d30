// One plan, two carriers: growing a trainer in memory and `expand` on its checkpoint give the same bytes.

#include "coppice/train/growth.h"

#include <gtest/gtest.h>

#include <cstring>

#include "coppice/base/text.h"
#include "coppice/grow/expand.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/save/checkpoint.h"
#include "coppice/train/run.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using testing::TempDir;

struct Trunk {
  TempDir dir;
  fs::path checkpoint;

  explicit Trunk(const char* dtype, const char* family = "glm4_moe") {
    auto o = testing::tiny_run(dir.path());
    o.dtype = dtype;
    o.model_family = family;
    if (families::family_of(family).has_latent_attention) o.num_kv_heads = o.num_heads;
    o.stop_at = 3;
    o.out = dir / "run";
    checkpoint = train(o).checkpoint;
  }
};

plan::GrowthOptions options(const std::string& experts = "2x") {
  plan::GrowthOptions out;
  out.experts = plan::ExpertCount::from_text(experts);
  out.seed = 5;
  return out;
}

void expect_same_bytes(const Trunk& trunk, nn::ComputeDtype dtype, const plan::GrowthOptions& growth,
                       const std::string& name) {
  SCOPED_TRACE(name);
  const auto model = families::open_model(trunk.checkpoint);
  const auto plan = plan::make_plan(model.config, growth, nullptr);
  const fs::path disk = trunk.dir / ("disk-" + name), memory = trunk.dir / ("memory-" + name);
  grow::expand(model, plan, {.out = disk, .threads = 1});
  auto [decoder, optimizer] = save::load_checkpoint(model, dtype);
  grow(decoder, optimizer, plan);
  save::write_checkpoint(memory, save::saved_state(decoder, optimizer, save::Copies::kView),
                         save::TrainerState::read(trunk.checkpoint), {});

  const auto from_disk = testing::tensor_files(disk), from_memory = testing::tensor_files(memory);
  ASSERT_EQ(from_disk.size(), 2u);
  ASSERT_EQ(from_memory.size(), 2u);
  for (size_t i = 0; i < from_disk.size(); ++i) {
    EXPECT_EQ(from_disk[i].first, from_memory[i].first);
    EXPECT_TRUE(from_disk[i].second == from_memory[i].second) << from_disk[i].first << " differs";
  }
  EXPECT_EQ(Json::read(disk / "config.json").dump(), Json::read(memory / "config.json").dump());
}

class GrowInMemory : public ::testing::TestWithParam<const char*> {
 protected:
  nn::ComputeDtype dtype() const {
    return std::string_view(GetParam()) == "bf16" ? nn::ComputeDtype::kBf16 : nn::ComputeDtype::kF32;
  }
};

TEST_P(GrowInMemory, GivesTheBytesOfExpandForEveryExpertMethod) {
  const Trunk trunk(GetParam());
  for (const auto& method : methods::expert_inits()) {
    auto growth = options();
    growth.expert_init = {std::string(method.name), {}};
    expect_same_bytes(trunk, dtype(), growth, std::string(method.name));
  }
}

TEST_P(GrowInMemory, GivesTheBytesOfExpandForEveryRouterMethod) {
  const Trunk trunk(GetParam());
  for (const auto& method : methods::router_inits()) {
    auto growth = options();
    growth.router_init = methods::MethodChoice{std::string(method.name), {}};
    expect_same_bytes(trunk, dtype(), growth, std::string(method.name));
  }
}

TEST_P(GrowInMemory, GivesTheBytesOfExpandForEveryOptimizerMethod) {
  const Trunk trunk(GetParam());
  for (const auto& method : methods::optimizer_inits()) {
    auto growth = options("6");  // not every expert has a copy
    growth.expert_init = {"drop_units", {}};
    growth.optimizer_state = {std::string(method.name), {}};
    expect_same_bytes(trunk, dtype(), growth, std::string(method.name));
  }
}

TEST_P(GrowInMemory, GivesTheBytesOfExpandForAnotherFamilyAndOrder) {
  const Trunk trunk(GetParam(), "qwen3_moe");
  auto growth = options("3x");
  growth.order = "siblings";
  growth.expert_init = {"copy_noise", {}};
  expect_same_bytes(trunk, dtype(), growth, "siblings");
}

TEST_P(GrowInMemory, GivesTheBytesOfExpandForScaledTopKAndSplits) {
  const Trunk trunk(GetParam());
  auto scaled = options("3x");
  scaled.scale_top_k = true;
  expect_same_bytes(trunk, dtype(), scaled, "scaled");
  auto split = options();
  split.split = 2;
  split.router_init = methods::MethodChoice{"copy", {}};
  expect_same_bytes(trunk, dtype(), split, "split");
}

// Experts side by side in one tensor on disk, rows and columns exchanged and gate and up alternating, with biases.
TEST_P(GrowInMemory, GivesTheBytesOfExpandForStackedExperts) {
  for (const char* family : {"gpt_oss", "granitemoe"}) {
    const Trunk trunk(GetParam(), family);
    for (const char* method : {"copy", "copy_noise", "drop_units", "svd_perturb"}) {
      auto growth = options("6");
      growth.expert_init = {method, {}};
      expect_same_bytes(trunk, dtype(), growth, cat(family, "-", method));
    }
    for (const auto& method : methods::optimizer_inits()) {
      auto growth = options();
      growth.expert_init = {"copy_noise", {}};
      growth.optimizer_state = {std::string(method.name), {}};
      expect_same_bytes(trunk, dtype(), growth, cat(family, "-state-", method.name));
    }
  }
}

TEST_P(GrowInMemory, GivesTheBytesOfExpandForLatentAttention) {
  const Trunk trunk(GetParam(), "deepseek_v3");
  auto growth = options();
  growth.expert_init = {"copy_noise", {}};
  expect_same_bytes(trunk, dtype(), growth, "latent");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GrowInMemory, ::testing::Values("f32", "bf16"), [](const auto& p) { return p.param; });

TEST(GrowInMemoryThenTrain, GoesOnAsFromTheExpandedCheckpoint) {
  const Trunk trunk("f32");
  const auto model = families::open_model(trunk.checkpoint);
  auto growth = options();
  growth.optimizer_state = {"reset", {}};
  const auto plan = plan::make_plan(model.config, growth, nullptr);
  grow::expand(model, plan, {.out = trunk.dir / "expanded", .threads = 1});
  auto o = testing::tiny_run(trunk.dir.path());
  o.model_path = trunk.dir / "expanded";
  o.start = "continue";
  o.out = trunk.dir / "arm";
  const auto result = train(o);
  EXPECT_EQ(result.first_step, 3);
  const auto grown = families::open_model(result.checkpoint);
  EXPECT_EQ(grown.config.num_experts, 8);
  EXPECT_TRUE(fs::exists(result.checkpoint / "coppice.json")) << "the lineage goes with the model";

  // A reset expert has counted its own steps since; its parent's went on.
  const auto state = models::OptimizerState::open(grown);
  ASSERT_TRUE(state.has_value());
  const auto step = [&](int64_t expert) {
    const auto name = families::tensor_name(grown.config, families::Role::kExpertUp, 0, expert);
    int64_t value = 0;
    std::memcpy(&value, state->at(name, "step").data().data(), sizeof value);
    return value;
  };
  EXPECT_EQ(step(0), 20);
  EXPECT_EQ(step(7), 17);
}

}  // namespace
}  // namespace coppice::train
