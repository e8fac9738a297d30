#include "coppice/kernels/moe.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "coppice/base/error.h"
#include "coppice/kernels/moe_detail.h"
#include "tests/guarded/devices.h"
#include "tests/kernels/moe_layers.h"

namespace coppice::kernels {
namespace {

using testing::expect_near;
using testing::in_f64;
using testing::Layer;
using testing::make_layer;
using testing::run;
using Case = testing::LayerSizes;

class MoeExperts : public ::testing::TestWithParam<Case> {
  void SetUp() override { at::set_num_threads(1); }
};

INSTANTIATE_TEST_SUITE_P(Sizes, MoeExperts,
                         ::testing::Values(Case{1, 8, 4, 2, 16}, Case{3, 7, 5, 1, 9}, Case{37, 33, 6, 3, 17},
                                           Case{64, 16, 2, 2, 300}, Case{1, 5, 1, 1, 3}, Case{700, 24, 3, 2, 40},
                                           Case{50, 12, 40, 8, 10}, Case{1100, 16, 1, 1, 8},
                                           // multiples of 32: kernels of our own, where the processor has AVX-512
                                           Case{1, 32, 4, 2, 64}, Case{37, 32, 3, 2, 32}, Case{700, 96, 3, 2, 160},
                                           Case{50, 64, 40, 8, 32}, Case{1100, 32, 1, 1, 32}));

TEST_P(MoeExperts, TellTheSquaredNormOfEachPairsOutput) {
  const auto layer = make_layer(GetParam());
  for (const auto kernel : {MoeKernel::kFast, MoeKernel::kReference}) {
    at::Tensor sq_TK;
    const auto y_TD = moe_experts(layer.x_TD, layer.w_gate_up_EGD, layer.w_down_EDF, layer.index_TK, layer.gate_TK,
                                  kernel, {}, &sq_TK);
    const auto without =
        moe_experts(layer.x_TD, layer.w_gate_up_EGD, layer.w_down_EDF, layer.index_TK, layer.gate_TK, kernel);
    EXPECT_TRUE(at::equal(y_TD, without));
    for (int64_t k = 0; k < layer.index_TK.size(1); ++k) {
      const auto index_T1 = layer.index_TK.narrow(1, k, 1).contiguous();
      const auto one_TD = moe_experts(layer.x_TD, layer.w_gate_up_EGD, layer.w_down_EDF, index_T1,
                                      at::full(index_T1.sizes(), 1.0), kernel);
      const auto wanted_T = one_TD.to(at::kDouble).square().sum(1);
      const auto error = (sq_TK.select(1, k) - wanted_T).abs().max().item<double>();
      EXPECT_LE(error, 1e-5 * wanted_T.max().item<double>());
    }
  }
}

TEST_P(MoeExperts, FastKernelMatchesTheReferenceInF64) {
  const auto layer = make_layer(GetParam());
  expect_near(run(layer, MoeKernel::kFast), run(in_f64(layer), MoeKernel::kReference), 3e-6);
}

TEST_P(MoeExperts, ReferenceInF32MatchesF64) {
  const auto layer = make_layer(GetParam());
  expect_near(run(layer, MoeKernel::kReference), run(in_f64(layer), MoeKernel::kReference), 3e-6);
}

// bf16 has 8 bits: activations, expert outputs and their gradients are each rounded once.
TEST_P(MoeExperts, FastKernelInBf16IsWithinItsRounding) {
  const auto layer = make_layer(GetParam(), at::kBFloat16);
  expect_near(run(layer, MoeKernel::kFast), run(in_f64(layer), MoeKernel::kReference), 2e-2);
}

// What runs where there is no kernel of our own. In f64 it is exact to the reference's slopes.
TEST_P(MoeExperts, OfLibtorchMatchTheReferenceInF64) {
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kDouble, 1e-12), std::pair(at::kFloat, 3e-6), std::pair(at::kBFloat16, 2e-2)}) {
    auto layer = make_layer(GetParam(), dtype);
    if (dtype == at::kDouble) layer = in_f64(layer);
    expect_near(testing::run_of(aten::kExperts, layer), run(in_f64(layer), MoeKernel::kReference), tolerance);
  }
}

// The same bits from the passes themselves; autograd calls the backward pass in a thread of the device, where libtorch's
// products may have another number of threads.
TEST_P(MoeExperts, OnAnotherDeviceAreThoseOfLibtorch) {
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 1e-6), std::pair(at::kBFloat16, 1e-2)}) {
    auto layer = make_layer(GetParam(), dtype);
    const auto wanted = testing::run_of(aten::kExperts, layer);
    for (at::Tensor* t : layer.all()) *t = t->to(guarded::kGuarded);
    auto passes = testing::run_of(aten::kExperts, layer), found = run(layer, MoeKernel::kFast);
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(found[i].device(), guarded::kGuarded);
      found[i] = found[i].to(at::kCPU);
      EXPECT_TRUE(at::equal(passes[i].to(at::kCPU), wanted[i])) << i;
    }
    EXPECT_TRUE(at::equal(found[0], wanted[0]));
    expect_near(found, wanted, tolerance);
  }
}

TEST_P(MoeExperts, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto layer = make_layer(GetParam(), dtype);
    at::set_num_threads(1);
    const auto wanted = run(layer, MoeKernel::kFast);
    for (const int threads : {2, 4}) {
      at::set_num_threads(threads);
      const auto found = run(layer, MoeKernel::kFast);
      for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(at::equal(found[i], wanted[i])) << threads << ' ' << i;
    }
  }
}

// The reference itself, held to central differences of its loss along a random direction of all its inputs.
TEST(MoeExpertsReference, GradientsAreFiniteDifferences) {
  const auto layer = in_f64(make_layer({9, 6, 4, 2, 5}));
  const auto gradients = run(layer, MoeKernel::kReference);
  const auto loss = [&](double step, const Layer& way) {
    const auto y = moe_experts(layer.x_TD + step * way.x_TD, layer.w_gate_up_EGD + step * way.w_gate_up_EGD,
                               layer.w_down_EDF + step * way.w_down_EDF, layer.index_TK,
                               layer.gate_TK + step * way.gate_TK, MoeKernel::kReference);
    return (y * layer.grad_TD).sum().item<double>();
  };
  Layer way;
  way.x_TD = at::randn(layer.x_TD.sizes(), at::kDouble);
  way.w_gate_up_EGD = at::randn(layer.w_gate_up_EGD.sizes(), at::kDouble);
  way.w_down_EDF = at::randn(layer.w_down_EDF.sizes(), at::kDouble);
  way.gate_TK = at::randn(layer.gate_TK.sizes(), at::kDouble);
  const double slope =
      (gradients[1] * way.x_TD).sum().item<double>() + (gradients[2] * way.w_gate_up_EGD).sum().item<double>() +
      (gradients[3] * way.w_down_EDF).sum().item<double>() + (gradients[4] * way.gate_TK).sum().item<double>();
  constexpr double kStep = 1e-5;
  EXPECT_NEAR((loss(kStep, way) - loss(-kStep, way)) / (2 * kStep), slope, 1e-6 * std::abs(slope));
}

TEST(MoeExpertsRouting, ExpertsWithoutTokensGetZeroGradients) {
  for (const auto& [dim, width] : {std::pair(8, 12), std::pair(32, 64)}) {
    auto layer = make_layer({20, dim, 6, 1, width});
    layer.index_TK = at::full({20, 1}, 3, at::kLong);  // all tokens on one expert
    const auto wanted = run(in_f64(layer), MoeKernel::kReference);
    for (const auto& found : {run(layer, MoeKernel::kFast), testing::run_of(aten::kExperts, layer)}) {
      expect_near(found, wanted, 3e-6);
      for (const int64_t e : {0, 1, 2, 4, 5}) {
        EXPECT_EQ(found[2][e].abs().max().item<float>(), 0.0f);
        EXPECT_EQ(found[3][e].abs().max().item<float>(), 0.0f);
      }
    }
  }
}

TEST(MoeExpertsRouting, NoTokensAreNoError) {
  auto layer = make_layer({1, 8, 3, 2, 4});
  layer.x_TD = layer.x_TD.narrow(0, 0, 0);
  layer.index_TK = layer.index_TK.narrow(0, 0, 0);
  layer.gate_TK = layer.gate_TK.narrow(0, 0, 0);
  layer.grad_TD = layer.grad_TD.narrow(0, 0, 0);
  for (const auto& found : {run(layer, MoeKernel::kFast), testing::run_of(aten::kExperts, layer)}) {
    EXPECT_EQ(found[0].size(0), 0);
    EXPECT_EQ(found[2].abs().max().item<float>(), 0.0f);
  }
}

TEST(MoeExpertsRouting, TheOrderOfSlotsDoesNotMatter) {
  const auto layer = make_layer({30, 8, 5, 2, 6});
  auto flipped = layer;
  flipped.index_TK = layer.index_TK.flip(1).contiguous();
  flipped.gate_TK = layer.gate_TK.flip(1).contiguous();
  auto a = run(layer, MoeKernel::kFast), b = run(flipped, MoeKernel::kFast);
  b[4] = b[4].flip(1);
  expect_near(a, b, 1e-6);
}

TEST(MoeExpertsRouting, AnExpertThatDoesNotExistIsAnError) {
  auto layer = make_layer({4, 8, 3, 2, 6});
  layer.index_TK[2][1] = 3;
  EXPECT_THROW(run(layer, MoeKernel::kFast), Error);
  EXPECT_THROW(testing::run_of(aten::kExperts, layer), c10::Error);
}

}  // namespace
}  // namespace coppice::kernels
