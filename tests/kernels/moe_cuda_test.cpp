// The MoE layer on a GPU, where this build and this machine have one.

#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <vector>

#include "coppice/kernels/routing.h"
#include "tests/kernels/moe_layers.h"
#include "tests/testing/errors.h"

namespace coppice::kernels {
namespace {

using testing::expect_near;
using testing::in_f64;
using testing::Layer;
using testing::LayerSizes;
using testing::make_layer;
using testing::run;

Layer on_gpu(Layer layer) {
  for (at::Tensor* t : layer.all()) *t = t->to(at::kCUDA);
  return layer;
}

class MoeExpertsOnCuda : public ::testing::TestWithParam<LayerSizes> {
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no GPU, or a build without CUDA (preset `cuda`)";
  }
};
// Sizes that the grouped GEMM takes in bf16, others, more pairs than one piece of the sort takes, experts without tokens.
INSTANTIATE_TEST_SUITE_P(Sizes, MoeExpertsOnCuda,
                         ::testing::Values(LayerSizes{1, 8, 4, 2, 16}, LayerSizes{3, 7, 5, 1, 9},
                                           LayerSizes{37, 33, 6, 3, 17}, LayerSizes{700, 24, 3, 2, 40},
                                           LayerSizes{50, 12, 40, 8, 10}, LayerSizes{1100, 16, 1, 1, 8},
                                           LayerSizes{300, 8, 64, 4, 1040}, LayerSizes{5000, 256, 32, 4, 384}));

TEST_P(MoeExpertsOnCuda, GiveWhatTheReferenceGivesThere) {
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 1e-5), std::pair(at::kBFloat16, 2e-2)}) {
    const auto layer = on_gpu(make_layer(GetParam(), dtype));
    const auto found = run(layer, MoeKernel::kFast);
    expect_near(found, run(in_f64(layer), MoeKernel::kReference), tolerance);
    for (const auto& t : found) EXPECT_TRUE(t.is_cuda());
  }
}

TEST_P(MoeExpertsOnCuda, GiveWhatTheCpuGives) {
  const auto layer = make_layer(GetParam());
  auto found = run(on_gpu(layer), MoeKernel::kFast);
  for (auto& t : found) t = t.cpu();
  expect_near(found, run(layer, MoeKernel::kFast), 1e-5);
}

TEST_P(MoeExpertsOnCuda, GiveTheSameBitsTwice) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto layer = on_gpu(make_layer(GetParam(), dtype));
    const auto first = run(layer, MoeKernel::kFast), second = run(layer, MoeKernel::kFast);
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], second[i])) << i;
  }
}

TEST_P(MoeExpertsOnCuda, CountTheirTokens) {
  const auto layer = make_layer(GetParam());
  const auto counts = expert_counts(layer.index_TK.to(at::kCUDA), GetParam().experts);
  EXPECT_TRUE(at::equal(counts.cpu(), expert_counts(layer.index_TK, GetParam().experts)));
}

TEST_P(MoeExpertsOnCuda, GiveNothingToExpertsWithoutTokens) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto layer = make_layer(GetParam(), dtype);
    layer.index_TK = at::full({GetParam().tokens, 1}, GetParam().experts - 1, at::kLong);
    layer.gate_TK = layer.gate_TK.narrow(1, 0, 1).contiguous();
    const auto found = run(on_gpu(layer), MoeKernel::kFast);
    expect_near(found, run(in_f64(on_gpu(layer)), MoeKernel::kReference), dtype == at::kFloat ? 1e-5 : 2e-2);
    for (int64_t e = 0; e + 1 < GetParam().experts; ++e) {
      EXPECT_EQ(found[2][e].abs().max().item<float>(), 0.0f) << e;
      EXPECT_EQ(found[3][e].abs().max().item<float>(), 0.0f) << e;
    }
  }
}

TEST(MoeExpertsOnCudaDevices, MustBeOneForAllTensors) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU, or a build without CUDA (preset `cuda`)";
  auto layer = on_gpu(make_layer({3, 8, 4, 2, 16}));
  layer.w_down_EDF = layer.w_down_EDF.cpu();
  coppice::testing::expect_error(ErrorCode::kInternal, {"device"}, [&] { run(layer, MoeKernel::kFast); });
}

}  // namespace
}  // namespace coppice::kernels
