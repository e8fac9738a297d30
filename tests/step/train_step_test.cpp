// One optimizer step on every device: the same numbers, and one wait.
#include "coppice/step/train_step.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/nn/host.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/guarded_device.h"
#include "tests/step/tiny_sizes.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::step {
namespace {

using testing::TempDir;

constexpr int64_t kLength = 16, kBatch = 4;

struct Setting {
  const char* name;
  const char* family;
  StepSettings settings;
};

std::shared_ptr<const nn::Lineage> lineage() {
  std::map<int64_t, std::vector<uint32_t>> parents;
  for (int64_t layer = 0; layer < kSizes.num_layers; ++layer) parents[layer] = {0, 0, 1, 1, 1, 2};
  return std::make_shared<nn::Lineage>(parents, 3);
}

StepSettings settings(BalanceKind balance, int64_t micro_batch) {
  StepSettings out;
  out.batch = kBatch;
  out.micro_batch = micro_batch;
  out.schedule = {.kind = ScheduleKind::kConstant, .peak = 1e-3, .steps = 100};
  out.clip = 1;
  out.balance = balance;
  out.balance_rate = 1e-3;
  out.aux_coef = 0.01;
  return out;
}

std::vector<Setting> all_settings() {
  std::vector<Setting> out{{"Aux4", "qwen3_moe", settings(BalanceKind::kAux, 4)},
                           {"Aux1", "qwen3_moe", settings(BalanceKind::kAux, 1)},
                           {"LossFree4", "glm4_moe", settings(BalanceKind::kLossFree, 4)},
                           {"LossFree1", "glm4_moe", settings(BalanceKind::kLossFree, 1)},
                           {"Everything", "qwen3_moe", settings(BalanceKind::kAux, 3)},
                           {"Lineage", "glm4_moe", settings(BalanceKind::kLossFree, 3)},
                           {"Waking", "glm4_moe", settings(BalanceKind::kLossFree, 2)}};
  auto& everything = out[4].settings;
  everything.z_coef = 0.01;
  everything.keep_routing = everything.recompute = everything.recentre = true;
  everything.lineage = std::make_shared<nn::LineageRouting>(lineage(), 0.5);
  out[5].settings.lineage = std::make_shared<nn::LineageRouting>(lineage(), 1.0);
  out[6].settings.waking = Waking{lineage(), 5};
  out[6].settings.recentre = true;
  return out;
}

class TrainStepOn : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    testing::write_tokens(dir / "tokens", kSizes.vocab_size, 10, 200);
  }

  families::Model model() {
    return families::open_model(testing::tiny_model(dir / "m", GetParam().family, {.sizes = kSizes}));
  }

  TempDir dir;
};
INSTANTIATE_TEST_SUITE_P(Settings, TrainStepOn, ::testing::ValuesIn(all_settings()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

struct Trained {
  std::vector<StepReport> reports;
  std::vector<long> transfers;  // to the host, of each step
  std::map<int64_t, std::vector<float>> selection_bias;
  Position position;
};

Trained train(const families::Model& source, const data::Sampler& sampler, const StepSettings& settings,
              at::Device device, int steps) {
  auto model = nn::Decoder::load(source, nn::ComputeDtype::kF32, device);
  Optimizer optimizer(model.parameters());
  BatchReader batches(sampler, device, false);
  Trained out;
  for (int i = 0; i < steps; ++i) {
    const long before = guarded::counters().copies_to_host;
    out.reports.push_back(train_step(model, optimizer, batches, settings, out.position));
    out.transfers.push_back(guarded::counters().copies_to_host - before);
  }
  for (const auto& [layer, bias_E] : model.selection_bias()) out.selection_bias[layer] = nn::to_host<float>(bias_E);
  return out;
}

TEST_P(TrainStepOn, GivesTheSameNumbersOnBothDevices) {
  const auto source = model();
  const data::Sampler sampler({data::TokenFile::open(dir / "tokens")}, {}, kLength, 1);
  const auto here = train(source, sampler, GetParam().settings, guarded::kCpu, 4),
             there = train(source, sampler, GetParam().settings, guarded::kGuarded, 4);
  for (size_t i = 0; i < here.reports.size(); ++i) {
    const auto &wanted = here.reports[i], &found = there.reports[i];
    EXPECT_NEAR(found.loss, wanted.loss, 1e-5 * wanted.loss) << i;
    EXPECT_NEAR(found.grad_norm, wanted.grad_norm, 1e-4 * wanted.grad_norm) << i;
    EXPECT_NEAR(found.aux_loss, wanted.aux_loss, 1e-4) << i;
    EXPECT_NEAR(found.z_loss, wanted.z_loss, 1e-4 * (1 + wanted.z_loss)) << i;
    ASSERT_EQ(found.layers.size(), wanted.layers.size());
    for (const auto& [layer, load] : wanted.layers) {
      const auto& other = found.layers.at(layer);
      EXPECT_EQ(nn::host_values<int64_t>(other.count_E).size(), static_cast<size_t>(kSizes.num_experts));
      EXPECT_EQ(nn::number(other.count_E.sum()), static_cast<double>(kBatch * kLength * kSizes.top_k));
      EXPECT_LE(nn::number((other.count_E - load.count_E).abs().sum()), 2.0) << "but for a token that was nearly even";
      EXPECT_EQ(other.index_TK.defined(), GetParam().settings.keep_routing);
      if (other.index_TK.defined()) {
        EXPECT_EQ(other.index_TK.size(0), kBatch * kLength);
      }
    }
    if (GetParam().settings.keep_routing) {
      EXPECT_TRUE(found.token_T.equal(wanted.token_T));
    }
  }
  EXPECT_EQ(there.selection_bias.size(), here.selection_bias.size());
  for (const auto& [layer, wanted] : here.selection_bias) {
    const auto& found = there.selection_bias.at(layer);
    for (size_t e = 0; e < wanted.size(); ++e) EXPECT_NEAR(found[e], wanted[e], 1e-6) << layer << " " << e;
  }
  EXPECT_EQ(there.position.next_sample, here.position.next_sample);
  EXPECT_EQ(there.position.expert_counts.empty(), here.position.expert_counts.empty());
}

TEST_P(TrainStepOn, WaitsForTheDeviceOnce) {
  const data::Sampler sampler({data::TokenFile::open(dir / "tokens")}, {}, kLength, 1);
  const auto source = model();
  const auto& settings = GetParam().settings;
  const auto there = train(source, sampler, settings, guarded::kGuarded, 3);
  // In f32 the MoE layer itself waits, once a forward pass (kernels/moe.h).
  const long passes = (settings.batch + settings.micro_batch - 1) / settings.micro_batch;
  const long forward = passes * source.config.num_moe_layers(), again = settings.recompute ? forward : 0;
  const bool counts_first = settings.balance == BalanceKind::kAux && passes > 1;
  const long a_step = 1 + forward + again;
  EXPECT_EQ(there.transfers, (std::vector<long>{a_step + (counts_first ? forward : 0), a_step, a_step}));
}

TEST_P(TrainStepOn, ChangesNothingIfTheLossIsNotFinite) {
  const auto source = this->model();
  for (const auto device : {guarded::kCpu, guarded::kGuarded}) {
    auto model = nn::Decoder::load(source, nn::ComputeDtype::kF32, device);
    const data::Sampler sampler({data::TokenFile::open(dir / "tokens")}, {}, kLength, 1);
    Optimizer optimizer(model.parameters());
    BatchReader batches(sampler, device, false);
    const auto before = nn::on_host(model.parameters()[1].master).clone();
    model.parameters()[0].value.data().fill_(NAN);
    Position position;
    testing::expect_error(ErrorCode::kNonFinite, {"step 1", "loss is"},
                          [&] { (void)train_step(model, optimizer, batches, GetParam().settings, position); });
    EXPECT_EQ(position.step, 0);
    EXPECT_TRUE(nn::on_host(model.parameters()[1].master).equal(before));
    EXPECT_EQ(optimizer.states()[0].steps[0], 0);
  }
}

}  // namespace
}  // namespace coppice::step
