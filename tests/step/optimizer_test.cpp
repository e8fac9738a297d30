#include "coppice/step/optimizer.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "coppice/nn/decoder.h"
#include "coppice/nn/host.h"
#include "tests/guarded/devices.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::step {
namespace {

using families::Role;

class OptimizerOn : public ::testing::TestWithParam<at::Device> {
 protected:
  static nn::Decoder tiny(nn::ComputeDtype dtype) {
    const testing::TempDir dir;
    return nn::Decoder::load(families::open_model(testing::tiny_model(dir / "m", "glm4_moe")), dtype, GetParam());
  }
};
class OptimizerAccumulate : public OptimizerOn {};
class OptimizerStep : public OptimizerOn {};
INSTANTIATE_TEST_SUITE_P(Devices, OptimizerAccumulate, guarded::both_devices(), guarded::device_name);
INSTANTIATE_TEST_SUITE_P(Devices, OptimizerStep, guarded::both_devices(), guarded::device_name);

void set_gradients(nn::Decoder& model, double value) {
  for (auto& p : model.parameters()) p.value.mutable_grad() = at::ones_like(p.value) * value;
}

size_t index_of(const nn::Decoder& model, Role role, int64_t layer) {
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    if (model.parameters()[i].role == role && model.parameters()[i].layer == layer) return i;
  }
  throw std::logic_error("no such parameter");
}

TEST_P(OptimizerAccumulate, SumsMicroBatchesInFp32AndClearsTheGradients) {
  auto model = tiny(nn::ComputeDtype::kBf16);
  Optimizer optimizer(model.parameters());
  set_gradients(model, 1.0);
  optimizer.accumulate(model.parameters());
  set_gradients(model, 0x1p-10);  // lost beside 1 in bf16
  optimizer.accumulate(model.parameters());
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    EXPECT_FALSE(model.parameters()[i].value.grad().defined());
    EXPECT_EQ(optimizer.states()[i].grad.scalar_type(), at::kFloat);
    EXPECT_TRUE(optimizer.states()[i].grad.eq(1.0 + 0x1p-10).all().item<bool>());
  }
}

TEST_P(OptimizerAccumulate, TakesTheGradientsOfOneMicroBatchAsTheyAre) {
  auto model = tiny(nn::ComputeDtype::kBf16);
  Optimizer optimizer(model.parameters());
  for (int step = 0; step < 2; ++step) {
    optimizer.clear();
    set_gradients(model, 0.5);
    const void* const given = model.parameters()[0].value.grad().data_ptr();
    optimizer.accumulate(model.parameters());
    EXPECT_EQ(optimizer.states()[0].grad.data_ptr(), given);
    const double norm = nn::number(optimizer.sum_of_squares().sqrt());
    optimizer.step(model.parameters(), {.lr = 1e-3}, norm, 0);
  }
}

TEST_P(OptimizerStep, ClipsByTheGlobalNorm) {
  auto model = tiny(nn::ComputeDtype::kF32);
  Optimizer optimizer(model.parameters());
  set_gradients(model, 2.0);
  optimizer.accumulate(model.parameters());
  const double norm = nn::number(optimizer.sum_of_squares().sqrt());
  int64_t elements = 0;
  for (const auto& p : model.parameters()) elements += p.master.numel();
  EXPECT_NEAR(norm, 2.0 * std::sqrt(static_cast<double>(elements)), 1e-6 * norm);
  optimizer.step(model.parameters(), {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95}, norm, 1.0);
  EXPECT_NEAR(optimizer.states().front().exp_avg.flatten()[0].item<float>(), 0.1 * 2.0 / norm, 1e-6);
}

TEST_P(OptimizerStep, DecaysMatricesAndNeitherNormsNorBiases) {
  auto model = tiny(nn::ComputeDtype::kF32);
  Optimizer optimizer(model.parameters());
  std::vector<at::Tensor> before;
  for (const auto& p : model.parameters()) before.push_back(p.master.clone());
  set_gradients(model, 0.0);
  optimizer.accumulate(model.parameters());
  optimizer.step(model.parameters(), {.lr = 0.1, .weight_decay = 0.5}, 0.0, 1.0);
  for (size_t i = 0; i < before.size(); ++i) {
    const auto& p = model.parameters()[i];
    const bool matrix = p.is_experts() || p.slices.front().slot.shape.size() == 2;
    EXPECT_TRUE(at::allclose(p.master, matrix ? before[i] * 0.95 : before[i])) << p.slices.front().slot.name;
  }
}

TEST_P(OptimizerStep, CountsExpertsAndRouterRowsApart) {
  auto model = tiny(nn::ComputeDtype::kF32);
  Optimizer optimizer(model.parameters());
  const size_t down = index_of(model, Role::kExpertDown, 0), router = index_of(model, Role::kRouter, 0);
  auto& steps = optimizer.states()[down].steps;
  ASSERT_EQ(steps.size(), 4u);
  ASSERT_EQ(optimizer.states()[router].steps.size(), 4u);
  steps = {10, 10, 0, 10};
  const at::Tensor before = model.parameters()[down].master.clone();
  set_gradients(model, 1.0);
  optimizer.accumulate(model.parameters());
  optimizer.step(model.parameters(), {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .weight_decay = 0}, 1.0, 0.0);
  EXPECT_EQ(steps, (std::vector<int64_t>{11, 11, 1, 11}));
  const at::Tensor moved = (before - model.parameters()[down].master).flatten(1).mean(1);
  EXPECT_NEAR(moved[2].item<float>(), 1e-3, 1e-6) << "the first update of a new expert has length lr";
  // Moments of zero at step 11: (0.1 / (1 - 0.9^11)) / sqrt(0.05 / (1 - 0.95^11)).
  EXPECT_NEAR(moved[0].item<float>(), 1e-3 * 0.1 / (1 - std::pow(0.9, 11)) / std::sqrt(0.05 / (1 - std::pow(0.95, 11))),
              1e-6);
  EXPECT_NEAR(moved[0].item<float>(), moved[1].item<float>(), 1e-7);
}

TEST_P(OptimizerStep, Bf16ValuesAreTheRoundedMasters) {
  auto model = tiny(nn::ComputeDtype::kBf16);
  Optimizer optimizer(model.parameters());
  set_gradients(model, 1.0);
  optimizer.accumulate(model.parameters());
  optimizer.step(model.parameters(), {.lr = 1e-3}, 1.0, 0.0);
  for (const auto& p : model.parameters()) {
    EXPECT_TRUE(at::equal(p.value, p.master.to(p.value.scalar_type()))) << p.slices.front().slot.name;
  }
}

}  // namespace
}  // namespace coppice::step
