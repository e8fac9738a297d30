// Products of bf16 that are computed in f32, as on processors that are faster at that.
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "coppice/kernels/cpu/moe_rows_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"
#include "coppice/kernels/cpu/small_products_detail.h"
#include "coppice/kernels/head_loss.h"
#include "coppice/kernels/linear.h"
#include "tests/kernels/moe_layers.h"
#include "tests/kernels/on_devices.h"

namespace coppice::kernels {
namespace {

constexpr double kRounding = 1.0 / 128;  // two roundings to bf16

class F32Products : public ::testing::Test {
 protected:
  F32Products() { cpu::f32_products_everywhere = true; }
  ~F32Products() override { cpu::f32_products_everywhere = false; }
};

/// Passes in bf16 against the same in f64.
void expect_near_f64(const testing::Function& f, const std::vector<at::Tensor>& inputs) {
  const auto rounded = testing::in_dtype(inputs, at::kBFloat16);
  const auto wanted = testing::run_on(guarded::kCpu, f, testing::in_dtype(rounded, at::kDouble));
  testing::expect_all_near(testing::run_on(guarded::kCpu, f, rounded), wanted, kRounding);
}

TEST_F(F32Products, AreTakenForBf16Alone) {
  EXPECT_TRUE(cpu::widens(at::kBFloat16));
  EXPECT_FALSE(cpu::widens(at::kFloat));
  EXPECT_FALSE(cpu::widens(at::kDouble));
}

TEST_F(F32Products, GiveLinearLayersWithOrWithoutBias) {
  at::manual_seed(1);
  for (const auto& [tokens, dim, out] : {std::array<int64_t, 3>{300, 64, 64}, {1, 7, 5}, {20, 200, 3}}) {
    const std::vector in{at::randn({tokens, dim}), at::randn({out, dim}), at::randn({out})};
    expect_near_f64([](const auto& t) { return kernels::linear(t[0], t[1]) + t[2]; }, in);
    expect_near_f64([](const auto& t) { return kernels::linear(t[0], t[1], t[2]); }, in);
  }
}

// The second vocabulary is wider than what is widened at a time.
TEST_F(F32Products, GiveTheHeadsLoss) {
  at::manual_seed(2);
  for (const auto& [vocabulary, dim] : {std::array<int64_t, 2>{37, 24}, {5000, 1024}}) {
    const auto target_T = at::randint(-1, vocabulary, {600}, at::kLong);
    const auto loss = [&](const auto& t) { return head_loss(t[0], t[1], target_T); };
    expect_near_f64(loss, {at::randn({600, dim}), at::randn({vocabulary, dim}) * 0.1});
  }
}

TEST_F(F32Products, GiveExperts) {
  for (const testing::LayerSizes& sizes :
       {testing::LayerSizes{200, 32, 4, 2, 48}, {3, 20, 8, 1, 12}, {600, 64, 2, 2, 32}}) {
    const auto layer = testing::make_layer(sizes, at::kBFloat16);
    auto exact = layer;
    for (at::Tensor* const t : exact.all()) {
      if (t->is_floating_point()) *t = t->to(at::kDouble);
    }
    testing::expect_all_near(testing::run_of(cpu::kExpertsByGemms, layer), testing::run_of(aten::kExperts, exact),
                             4 * kRounding);
  }
}

}  // namespace
}  // namespace coppice::kernels
