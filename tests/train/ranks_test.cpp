// A run on several ranks: the losses of one rank, with growth in its middle; stopped and resumed on any number of them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "coppice/base/text.h"
#include "coppice/cost/memory.h"
#include "coppice/cost/traffic.h"
#include "coppice/grow/expand.h"
#include "coppice/methods/expert_init.h"
#include "coppice/save/checkpoint_writer.h"
#include "coppice/train/growth.h"
#include "coppice/train/run.h"
#include "coppice/train/run_directory.h"
#include "tests/dist/thread_ranks.h"
#include "tests/testing/temp_dir.h"
#include "tests/train/tiny_run.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using testing::borrowed;
using testing::TempDir;

struct Ranks {
  int64_t all = 1, experts = 1;  // of an expert group
};

// The run on these ranks; each computes the windows that one rank does in its one pass.
TrainResult run_on(const Ranks& ranks, TrainOptions options) {
  options.micro_batch = 8 / ranks.all;
  if (ranks.all == 1) return train(options);
  TrainResult first;
  testing::run_ranks(ranks.all,
                     [&](dist::World& world) {
                       const TrainResult result = train(options, {}, borrowed(world));
                       if (world.rank() == 0) first = result;
                     },
                     {.expert_parallel = ranks.experts, .timeout = std::chrono::seconds(120)});
  return first;
}

std::vector<double> losses(const fs::path& run) {
  std::vector<double> out;
  for (const Json& line : testing::metrics(run, "loss")) out.push_back(line.at("loss").as_double());
  return out;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& wanted, double tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], wanted[i], tolerance * wanted[i]) << "step " << i + 1;
}

TrainOptions growing_run(const TempDir& dir, const char* family) {
  auto o = testing::tiny_run(dir.path());
  o.model_family = family;
  o.steps = 50;
  o.lr = 3e-3;
  o.growth =
      Json::parse(R"([{"at_step": 25, "experts": "7", "score_batches": 2, "expert_init": "interpolate"}])", "test");
  o.handover = "release";
  o.handover_steps = 10;
  o.validate_every = 25;
  return o;
}

class RunOnRanks : public ::testing::TestWithParam<Ranks> {
 protected:
  // Several expert groups of several ranks: the case that has all of it.
  static bool is_divided_both_ways() { return GetParam().experts > 1 && GetParam().experts < GetParam().all; }
};
INSTANTIATE_TEST_SUITE_P(Divisions, RunOnRanks,
                         ::testing::Values(Ranks{2, 1}, Ranks{2, 2}, Ranks{4, 1}, Ranks{4, 2}, Ranks{4, 4}),
                         [](const auto& p) { return cat(p.param.all, "RanksBy", p.param.experts); });

TEST_P(RunOnRanks, HasTheLossesOfOneRankOver50StepsWithGrowthInTheMiddle) {
  for (const char* family : {"glm4_moe", "qwen3_moe"}) {
    if (family == std::string_view("qwen3_moe") && !is_divided_both_ways()) continue;  // an auxiliary loss, once
    SCOPED_TRACE(family);
    const TempDir dir;
    auto o = growing_run(dir, family);
    o.out = dir / "one";
    const auto one = run_on({}, o);
    o.out = dir / "ranks";
    const auto several = run_on(GetParam(), o);
    expect_near(losses(dir / "ranks"), losses(dir / "one"), 1e-5);
    EXPECT_EQ(several.last_step, 50);
    ASSERT_EQ(several.validation_loss.size(), one.validation_loss.size());
    for (const auto& [name, loss] : one.validation_loss) {
      EXPECT_NEAR(several.validation_loss.at(name), loss, 1e-5 * loss);
    }
    EXPECT_EQ(testing::metrics(dir / "ranks", "sibling_cosine/mean").size(),
              testing::metrics(dir / "one", "sibling_cosine/mean").size());
    // Choices of experts are equal where losses are to rounding; these look at those of all ranks' tokens.
    for (const char* name : {"effective_top_k/mean", "routing_overlap/mean"}) {
      const auto found = testing::metrics(dir / "ranks", name), wanted = testing::metrics(dir / "one", name);
      ASSERT_EQ(found.size(), 25u);
      ASSERT_EQ(wanted.size(), 25u);
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_NEAR(found[i].at(name).as_double(), wanted[i].at(name).as_double(), 1e-9) << name;
      }
    }
    // The checkpoint is one of the ecosystem, whole, with the same tensors.
    const auto model = families::open_model(several.checkpoint);
    EXPECT_EQ(model.config.num_experts, 7);
    const auto a = testing::tensor_files(several.checkpoint), b = testing::tensor_files(one.checkpoint);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].first, b[i].first);
      EXPECT_EQ(a[i].second.size(), b[i].second.size());
    }
  }
}

TEST_P(RunOnRanks, ResumesBitForBit) {
  if (GetParam().experts == 1) GTEST_SKIP() << "the two divisions of experts tell it";
  const TempDir dir;
  auto o = growing_run(dir, "glm4_moe");
  o.dtype = "bf16";
  o.steps = 36;
  o.out = dir / "whole";
  const auto whole = run_on(GetParam(), o);
  o.out = dir / "parts";
  for (const int64_t stop : {25, 30}) {
    o.stop_at = stop;
    (void)run_on(GetParam(), o);
    o.resume = true;
  }
  o.stop_at = 0;
  const auto parts = run_on(GetParam(), o);
  EXPECT_EQ(testing::exact_losses(dir / "parts"), testing::exact_losses(dir / "whole"));
  EXPECT_EQ(testing::tensor_files(parts.checkpoint), testing::tensor_files(whole.checkpoint));
}

TEST(RunOnOtherRanks, GoesOnAsIfNothingHadHappened) {
  const TempDir dir;
  auto o = growing_run(dir, "glm4_moe");
  o.out = dir / "whole";
  (void)run_on({}, o);
  o.out = dir / "parts";
  o.stop_at = 20;
  o.micro_batch = 2;
  const auto on = [&](const Ranks& ranks) {
    // Without an auxiliary loss a step does not depend on its passes.
    if (ranks.all == 1) return (void)train(o);
    testing::run_ranks(ranks.all, [&](dist::World& world) { (void)train(o, {}, borrowed(world)); },
                       {.expert_parallel = ranks.experts, .timeout = std::chrono::seconds(120)});
  };
  on({4, 2});
  o.resume = true;
  o.stop_at = 35;
  on({2, 2});
  o.stop_at = 42;
  on({1, 1});
  o.stop_at = 0;
  on({2, 1});
  expect_near(losses(dir / "parts"), losses(dir / "whole"), 1e-5);
}

// One plan, three carriers: on disk, in memory, in the memories of several ranks.
TEST_P(RunOnRanks, GrowsToTheBytesOfExpand) {
  for (const char* family : {"glm4_moe", "gpt_oss"}) {
    const TempDir dir;
    auto o = testing::tiny_run(dir.path());
    o.model_family = family;
    o.dtype = "bf16";
    o.stop_at = 3;
    o.out = dir / "run";
    const fs::path trunk = train(o).checkpoint;
    const auto model = families::open_model(trunk);
    for (const auto& method : methods::expert_inits()) {
      // Every method once; elsewhere one that copies and those that read other experts too.
      if (!is_divided_both_ways() && method.name != "copy" && !method.needs_partner) continue;
      SCOPED_TRACE(cat(family, " ", method.name));
      plan::GrowthOptions growth;
      growth.experts = plan::ExpertCount::from_text("2x");
      growth.seed = 5;
      growth.expert_init = {std::string(method.name), {}};
      const auto plan = plan::make_plan(model.config, growth, nullptr);
      const fs::path disk = dir / cat("disk-", method.name), memory = dir / cat("memory-", method.name);
      grow::expand(model, plan, {.out = disk, .threads = 1});
      testing::run_ranks(GetParam().all,
                         [&](dist::World& world) {
                           const auto source = families::open_model(trunk);
                           auto [decoder, optimizer] =
                               save::load_checkpoint(source, nn::ComputeDtype::kBf16, at::kCPU,
                                                     nn::divide(borrowed(world), source.config, {}));
                           grow(decoder, optimizer, plan);
                           save::CheckpointWriter writer;
                           writer.write(memory, decoder, optimizer, save::TrainerState::read(trunk), {}, false);
                           EXPECT_TRUE(writer.finished(true).has_value());
                         },
                         {.expert_parallel = GetParam().experts, .timeout = std::chrono::seconds(120)});
      EXPECT_TRUE(testing::tensor_files(memory) == testing::tensor_files(disk));
      EXPECT_EQ(Json::read(disk / "config.json").dump(), Json::read(memory / "config.json").dump());
      fs::remove_all(disk);
      fs::remove_all(memory);
    }
  }
}

// The formulas that `plan` counts with, and the counters of a run.
// 5 experts are divided unevenly, and rank 0 has the most.
void expect_bytes_of_plan(const Ranks& on, int64_t num_experts) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.model_family = "qwen3_moe";
  o.num_experts = num_experts;
  o.steps = 3;
  o.warmup = 1;
  o.balance = "none";
  o.out = dir / "run";
  (void)run_on(on, o);
  const auto steps = testing::metrics(dir / "run", "sent/reduce_scatter");
  ASSERT_EQ(steps.size(), 3u);
  const int64_t ranks = on.all, group = on.experts, replicas = ranks / group;
  const auto model = families::open_model(checkpoint_path(o.out, 3));
  const cost::ModelSize planned = cost::model_size(model);
  const int64_t here = cost::most_experts(planned, {.data = ranks, .expert = group});
  // Two layers, all of whose parameters are f32; the others are one bucket.
  int64_t others = 0, experts = 0;
  for (const auto& slot : families::expected_tensors(model.config)) {
    int64_t count = 1;
    for (const int64_t size : slot.shape) count *= size;
    (families::is_expert(slot.role()) ? experts : others) += count;
  }
  const std::vector<int64_t> dense{others}, of_layers(2, experts / 2 / num_experts * here);
  const auto sharded =
      static_cast<double>(cost::sharded_bytes(dense, ranks, 4) + cost::sharded_bytes(of_layers, replicas, 4));
  for (const Json& step : steps) {
    EXPECT_EQ(step.at("sent/reduce_scatter").as_double(), sharded);
    EXPECT_EQ(step.at("sent/all_gather").as_double(), sharded);
    // Rows that left and came are not in the metrics: every pair of the batch that leaves its rank costs what RowBytes
    // says, the counts are exact.
    const cost::RowBytes row{.model_dim = 32, .activation_bytes = 4};
    const double counts = 2.0 * static_cast<double>(row.of_counts(num_experts - here));
    const double rows = step.at("sent/all_to_all").as_double() - (group > 1 ? counts : 0);
    if (group == 1) {
      EXPECT_EQ(rows, 0);
    } else {
      EXPECT_GE(rows, 0);
      const double most =
          2.0 * 128 / static_cast<double>(ranks) * 2 * static_cast<double>(row.of_token() + row.of_expert() * group);
      EXPECT_LE(rows, most);
    }
  }
}

TEST_P(RunOnRanks, SendsTheBytesThatPlanCounts) {
  for (const int64_t num_experts : {4, 5}) {
    SCOPED_TRACE(num_experts);
    expect_bytes_of_plan(GetParam(), num_experts);
  }
}

TEST_P(RunOnRanks, HoldsTheBytesThatPlanCounts) {
  for (const int64_t num_experts : {4, 5}) {
    SCOPED_TRACE(num_experts);
    const TempDir dir;
    auto o = testing::tiny_run(dir.path());
    o.num_experts = num_experts;
    o.dtype = "bf16";
    o.stop_at = 1;
    o.out = dir / "run";
    const fs::path trunk = train(o).checkpoint;
    const auto source = families::open_model(trunk);
    const cost::StateBytes bytes;
    const auto planned = cost::device_memory(
        cost::model_size(source), {.data = GetParam().all, .expert = GetParam().experts, .zero1 = true}, bytes);
    testing::run_ranks(GetParam().all,
                       [&](dist::World& world) {
                         auto [decoder, optimizer] = save::load_checkpoint(
                             source, nn::ComputeDtype::kBf16, at::kCPU, nn::divide(borrowed(world), source.config, {}));
                         uint64_t weights = 0, states = 0;
                         for (size_t i = 0; i < decoder.parameters().size(); ++i) {
                           weights += decoder.parameters()[i].value.nbytes();
                           states += decoder.parameters()[i].master.nbytes();
                           states += optimizer.states()[i].exp_avg.nbytes() + optimizer.states()[i].exp_avg_sq.nbytes();
                         }
                         if (world.rank() == 0) {
                           EXPECT_EQ(weights, planned.weights);
                           EXPECT_NEAR(static_cast<double>(states), static_cast<double>(planned.optimizer),
                                       0.1 * static_cast<double>(planned.optimizer));
                         }
                         EXPECT_LE(weights, planned.weights);
                       },
                       {.expert_parallel = GetParam().experts, .timeout = std::chrono::seconds(120)});
  }
}

TEST(CheckpointOfRanks, LeavesNothingIfOneRankFails) {
  const TempDir dir;
  auto o = testing::tiny_run(dir.path());
  o.stop_at = 2;
  o.out = dir / "run";
  const fs::path trunk = train(o).checkpoint;
  fs::create_directory(dir / "out");
  const auto errors = testing::try_ranks(
      2,
      [&](dist::World& world) {
        const auto source = families::open_model(trunk);
        auto [decoder, optimizer] = save::load_checkpoint(source, nn::ComputeDtype::kF32, at::kCPU,
                                                          nn::divide(borrowed(world), source.config, {}));
        for (auto& p : decoder.parameters()) {
          if (world.rank() == 1) p.master.fill_(INFINITY);
        }
        save::CheckpointWriter writer;
        writer.write(dir / "out" / "checkpoint", decoder, optimizer, save::TrainerState::read(trunk), {}, true);
        (void)writer.finished(true);
      },
      {.timeout = std::chrono::seconds(60)});
  for (const auto& error : errors) EXPECT_THAT(error, ::testing::HasSubstr("was not written"));
  EXPECT_TRUE(fs::is_empty(dir / "out"));
}

}  // namespace
}  // namespace coppice::train
