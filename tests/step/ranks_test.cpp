// A step on several ranks: the numbers of one rank, whatever is divided.
#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coppice/nn/host.h"
#include "coppice/step/divided_state.h"
#include "coppice/step/train_step.h"
#include "tests/dist/thread_ranks.h"
#include "tests/step/tiny_sizes.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::step {
namespace {

using testing::TempDir;

constexpr int64_t kLength = 16, kBatch = 8;

struct Case {
  const char* name;
  const char* family;
  BalanceKind balance;
  int64_t passes;  // of a batch
  int64_t ranks, experts;
  bool by_lineage = false, recompute = false, is_bf16 = false;
};

std::vector<Case> all_cases() {
  std::vector<Case> out;
  for (const auto& [ranks, experts] : {std::pair{2, 1}, {2, 2}, {4, 1}, {4, 2}, {4, 4}}) {
    out.push_back({"Aux", "qwen3_moe", BalanceKind::kAux, 1, ranks, experts});
    out.push_back({"AuxInPasses", "qwen3_moe", BalanceKind::kAux, 2, ranks, experts});
    out.push_back({"LossFree", "glm4_moe", BalanceKind::kLossFree, 2, ranks, experts});
  }
  out.push_back({"Lineage", "glm4_moe", BalanceKind::kLossFree, 1, 4, 2, true});
  out.push_back({"Recompute", "qwen3_moe", BalanceKind::kAux, 1, 2, 2, false, true});
  out.push_back({"Bf16", "qwen3_moe", BalanceKind::kAux, 1, 4, 2, false, false, true});
  return out;
}

std::map<int64_t, std::vector<uint32_t>> parents() {
  std::map<int64_t, std::vector<uint32_t>> out;
  for (int64_t layer = 0; layer < kSizes.num_layers; ++layer) out[layer] = {0, 0, 1, 1, 1, 2};
  return out;
}

class RanksTrain : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    testing::write_tokens(dir / "tokens", kSizes.vocab_size, 10, 200);
    path = testing::tiny_model(dir / "m", GetParam().family, {.sizes = kSizes});
  }

  struct Trained {
    std::vector<StepReport> reports;
    std::map<int64_t, std::vector<float>> selection_bias;
    std::map<std::string, std::vector<float>> values;  // of tensors of parameters that are no experts
    std::map<std::string, std::vector<float>> experts;
  };

  Trained train(std::shared_ptr<dist::World> world, int64_t passes, int steps) const {
    const Case& c = GetParam();
    StepSettings settings;
    settings.batch = kBatch;
    settings.micro_batch = kBatch / passes / (world ? world->size() : 1);
    settings.schedule = {.kind = ScheduleKind::kConstant, .peak = 1e-3, .steps = 100};
    settings.clip = 0.5;
    settings.balance = c.balance;
    settings.balance_rate = 1e-3;
    settings.aux_coef = 0.05;
    settings.z_coef = 0.01;
    settings.recompute = c.recompute;
    if (c.by_lineage) {
      const auto lineage = std::make_shared<nn::Lineage>(parents(), 3);
      settings.lineage = std::make_shared<nn::LineageRouting>(nn::LineageRouting{lineage, 0.5, 1});
    }
    const data::Sampler sampler({data::TokenFile::open(dir / "tokens")}, {}, kLength, 1);
    const auto source = families::open_model(path);
    const auto dtype = c.is_bf16 ? nn::ComputeDtype::kBf16 : nn::ComputeDtype::kF32;
    auto model = nn::Decoder::load(source, dtype, at::kCPU,
                                   nn::divide(world, source.config, c.by_lineage ? parents() : decltype(parents()){}));
    Optimizer optimizer(model.parameters(), model.division());
    BatchReader batches(sampler, at::kCPU, false);
    Position position;
    Trained out;
    for (int i = 0; i < steps; ++i) {
      out.reports.push_back(train_step(model, optimizer, batches, settings, position));
    }
    optimizer.wait_for_values(kSizes.num_layers);
    for (const auto& [layer, bias_E] : model.selection_bias()) out.selection_bias[layer] = nn::to_host<float>(bias_E);
    for (const auto& p : model.parameters()) {
      for (const auto& slice : p.slices) {
        auto& to = p.is_experts() ? out.experts : out.values;
        to[slice.slot.name] = nn::to_host<float>(slice.of(p.value.detach().to(at::kFloat)));
      }
    }
    return out;
  }

  TempDir dir;
  std::filesystem::path path;
};
INSTANTIATE_TEST_SUITE_P(Cases, RanksTrain, ::testing::ValuesIn(all_cases()), [](const auto& param_info) {
  const Case& c = param_info.param;
  return c.name + std::to_string(c.ranks) + "RanksBy" + std::to_string(c.experts);
});

void expect_near(const std::map<std::string, std::vector<float>>& found,
                 const std::map<std::string, std::vector<float>>& wanted, float tolerance) {
  for (const auto& [name, values] : found) {
    const auto& other = wanted.at(name);
    ASSERT_EQ(values.size(), other.size()) << name;
    for (size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], other[i], tolerance) << name << " " << i;
  }
}

TEST_P(RanksTrain, LikeOneRank) {
  const Case& c = GetParam();
  const int steps = 6;
  const Trained wanted = train(nullptr, c.passes, steps);
  const double tolerance = c.is_bf16 ? 2e-3 : 1e-5;
  std::mutex mutex;
  std::map<std::string, int> ranks_with;  // of each tensor of experts
  testing::run_ranks(c.ranks,
                     [&](dist::World& world) {
                       const Trained found = train(testing::borrowed(world), c.passes, steps);
                       const std::lock_guard lock(mutex);
                       for (int i = 0; i < steps; ++i) {
                         const auto &a = found.reports[i], &b = wanted.reports[i];
                         EXPECT_NEAR(a.loss, b.loss, tolerance * b.loss) << i;
                         EXPECT_NEAR(a.grad_norm, b.grad_norm, 10 * tolerance * b.grad_norm) << i;
                         EXPECT_NEAR(a.aux_loss, b.aux_loss, 10 * tolerance * (1 + b.aux_loss)) << i;
                         EXPECT_NEAR(a.z_loss, b.z_loss, 10 * tolerance * (1 + b.z_loss)) << i;
                         ASSERT_EQ(a.layers.size(), b.layers.size());
                         for (const auto& [layer, load] : b.layers) {
                           const auto& counts = a.layers.at(layer).count_E;
                           EXPECT_EQ(nn::number(counts.sum()), static_cast<double>(kBatch * kLength * kSizes.top_k));
                           EXPECT_LE(nn::number((counts - load.count_E).abs().sum()), c.is_bf16 ? 40 : 2);
                         }
                       }
                       const float near = c.is_bf16 ? 2e-2F : 2e-4F;
                       expect_near(found.values, wanted.values, near);
                       expect_near(found.experts, wanted.experts, near);
                       for (const auto& [layer, bias] : wanted.selection_bias) {
                         for (size_t e = 0; e < bias.size(); ++e)
                           EXPECT_NEAR(found.selection_bias.at(layer)[e], bias[e], 1e-6);
                       }
                       for (const auto& [name, values] : found.experts) ++ranks_with[name];
                     },
                     {.expert_parallel = c.experts, .timeout = std::chrono::seconds(60)});
  ASSERT_EQ(ranks_with.size(), wanted.experts.size()) << "every expert is somewhere";
  for (const auto& [name, count] : ranks_with) {
    const bool is_stack = count == c.ranks && c.experts > 1;
    EXPECT_TRUE(is_stack || count == c.ranks / c.experts) << name << " is on " << count << " ranks";
  }
}

TEST(DividedState, KeepsEveryElementOnOneRank) {
  TempDir dir;
  const auto path = testing::tiny_model(dir / "m", "qwen3_moe", {.sizes = kSizes});
  for (const auto& [ranks, experts, is_cut] :
       {std::tuple{2, 1, false}, {4, 2, false}, {3, 3, false}, {2, 1, true}, {4, 2, true}}) {
    testing::run_ranks(ranks,
                       [&](dist::World& world) {
                         const auto source = families::open_model(path);
                         const auto division = nn::divide(testing::borrowed(world), source.config, parents());
                         auto model = nn::Decoder::load(source, nn::ComputeDtype::kBf16, at::kCPU, division,
                                                        is_cut ? keep_masters(division) : nn::KeepMasters());
                         const auto whole = nn::Decoder::load(source, nn::ComputeDtype::kBf16);
                         Optimizer optimizer(model.parameters(), division);
                         for (size_t i = 0; i < model.parameters().size(); ++i) {
                           const at::Tensor master = master_on_first_rank(optimizer, model.parameters(), i);
                           if (world.rank() > 0) {
                             EXPECT_EQ(master.numel(), 0);
                           } else {
                             EXPECT_TRUE(master.equal(whole.parameters()[i].master.view({-1}))) << i;
                           }
                         }
                       },
                       {.expert_parallel = experts, .timeout = std::chrono::seconds(60)});
  }
}

/// Counts the bytes of host tensors of this thread.
class TensorBytes : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now += bytes;
    most = std::max(most, now);
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t now = 0, most = 0;
};

// A rank never has the masters of all its parameters, only those that it keeps and one that is being cut.
TEST(MastersOnRanks, AreCutAsTheyAreRead) {
  TempDir dir;
  auto sizes = kSizes;
  sizes.num_layers = 12;
  const auto path = testing::tiny_model(dir / "m", "qwen3_moe", {.sizes = sizes});
  testing::run_ranks(4,
                     [&](dist::World& world) {
                       const auto source = families::open_model(path);
                       const auto division = nn::divide(testing::borrowed(world), source.config);
                       const auto counter = std::make_shared<TensorBytes>();
                       const c10::DebugInfoGuard counted(c10::DebugInfoKind::PROFILER_STATE, counter);
                       const auto model = nn::Decoder::load(source, nn::ComputeDtype::kBf16, at::kCPU, division,
                                                            keep_masters(division));
                       int64_t values = 0, kept = 0, largest = 0;
                       for (const auto& p : model.parameters()) {
                         values += p.value.numel();
                         kept += p.master.numel();
                         largest = std::max(largest, p.value.numel());
                       }
                       EXPECT_LT(kept, values / 2);
                       const int64_t slack = 256 * std::ssize(model.parameters());  // blocks are rounded up
                       EXPECT_LE(counter->now, 2 * values + 4 * kept + slack);
                       EXPECT_LE(counter->most, 2 * values + 4 * kept + 4 * largest + slack);
                       EXPECT_GT(2 * values + 4 * values, 2 * values + 4 * kept + 4 * largest + slack);
                     },
                     {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

}  // namespace
}  // namespace coppice::step
