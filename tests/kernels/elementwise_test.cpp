// RMSNorm, RoPE and SwiGLU: the variant of libtorch's operators in f64 against formulas and slopes, and the other
// variants and devices against that.

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/real.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sin.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <vector>

#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/elementwise_detail.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/kernels/rope.h"
#include "coppice/kernels/swiglu.h"
#include "tests/kernels/on_devices.h"

namespace coppice::kernels {
namespace {

using testing::expect_same_everywhere;
using testing::expect_same_for_threads;
using testing::expect_slopes;
using testing::in_dtype;
using testing::run_on;

TEST(RmsNorm, IsTheFormulaWithItsGradientsOnEveryDevice) {
  constexpr double kEpsilon = 1e-3;
  const auto ours = [](const auto& in) { return rms_norm(in[0], in[1], kEpsilon); };
  const auto of_aten = [](const auto& in, const at::Tensor& grad) {
    const auto y = aten::rms_norm_forward(in[0], in[1], kEpsilon);
    const auto g = aten::rms_norm_backward(in[0], in[1], y.scale_R, grad);
    return std::vector{y.out, g.x, g.weight};
  };
  for (const int64_t width : {3, 7, 32, 100}) {
    const std::vector in{at::randn({3, 150, width}), at::randn({width})};
    const auto x = in[0].to(at::kDouble);
    const auto formula = in[1] * x * at::rsqrt(x.square().mean(-1, true) + kEpsilon);
    EXPECT_TRUE(ours(in_dtype(in, at::kDouble)).allclose(formula, 1e-14));
    expect_slopes(ours, in);
    expect_same_everywhere(ours, of_aten, in);
    expect_same_for_threads(ours, in);
  }
}

// Of a bf16 x with an f32 weight: one rounding, behind the product. A weight of 1.003 is no bf16.
TEST(RmsNorm, AppliesAWeightInF32BeforeItRounds) {
  constexpr double kEpsilon = 1e-6;
  at::manual_seed(4);
  const auto x = at::randn({50, 48}).to(at::kBFloat16).set_requires_grad(true);
  const auto weight = (1 + at::randn({48}) * 0.003).set_requires_grad(true);
  const auto plain = [&](const at::Tensor& of, const at::Tensor& w) {
    return w * of * at::rsqrt(of.square().mean(-1, true) + kEpsilon);
  };
  const auto y = rms_norm(x, weight, kEpsilon);
  ASSERT_EQ(y.scalar_type(), at::kBFloat16);
  const auto x64 = x.detach().to(at::kDouble).set_requires_grad(true);
  const auto w64 = weight.detach().to(at::kDouble).set_requires_grad(true);
  const auto wanted = plain(x64, w64);
  EXPECT_LT(y.ne(wanted.to(at::kBFloat16)).sum().item<int64_t>(), 5) << "the nearest bf16";
  const auto grad = at::randn(y.sizes()).to(at::kBFloat16);
  const auto found = torch::autograd::grad({y}, {x, weight}, {grad});
  const auto exact = torch::autograd::grad({wanted}, {x64, w64}, {grad.to(at::kDouble)});
  EXPECT_EQ(found[1].scalar_type(), at::kFloat);
  EXPECT_TRUE(found[1].to(at::kDouble).allclose(exact[1], 1e-5, 1e-4));
  EXPECT_TRUE(found[0].to(at::kDouble).allclose(exact[0], 1e-2, 1e-2));

  const auto there = rms_norm(x.detach().to(guarded::kGuarded), weight.detach().to(guarded::kGuarded), kEpsilon);
  ASSERT_EQ(there.scalar_type(), at::kBFloat16);
  EXPECT_LT(there.to(at::kCPU).ne(wanted.to(at::kBFloat16)).sum().item<int64_t>(), 5);
}

TEST(Swiglu, IsTheFormulaWithItsGradientsOnEveryDevice) {
  const auto ours = [](const auto& in) { return swiglu(in[0], in[1]); };
  const auto of_aten = [](const auto& in, const at::Tensor& grad) {
    const auto g = aten::swiglu_backward(in[0], in[1], grad);
    return std::vector{aten::swiglu_forward(in[0], in[1]), g.gate, g.up};
  };
  const std::vector in{at::randn({201, 101}) * 4, at::randn({201, 101})};
  const auto x = in[0].to(at::kDouble);
  EXPECT_TRUE(ours(in_dtype(in, at::kDouble)).allclose(x / (1 + at::exp(-x)) * in[1], 1e-14));
  expect_slopes(ours, in);
  expect_same_everywhere(ours, of_aten, in);
  expect_same_for_threads(ours, in);
}

// A rotation: with complex numbers, (a + ib) e^(i angle).
TEST(Rope, TurnsTheLeadingDimensionsAndPassesTheRestOnEveryDevice) {
  const auto angle_SR = at::randn({11, 3});
  const auto cos = at::cos(angle_SR), sin = at::sin(angle_SR);
  const auto ours = [&](const auto& in) { return rope(in[0], cos.to(in[0].device()), sin.to(in[0].device())); };
  const auto of_aten = [&](const auto& in, const at::Tensor& grad) {
    return std::vector{aten::rope(in[0], cos, sin, 1), aten::rope(grad, cos, sin, -1)};
  };
  const std::vector in{at::randn({2, 11, 5, 10})};
  const auto x = in[0].to(at::kDouble);
  const auto turned = at::complex(x.narrow(3, 0, 3), x.narrow(3, 3, 3)) *
                      at::complex(cos.to(at::kDouble), sin.to(at::kDouble)).unsqueeze(1);
  EXPECT_TRUE(ours(in_dtype(in, at::kDouble))
                  .allclose(at::cat({at::real(turned), at::imag(turned), x.narrow(3, 6, 4)}, 3), 1e-14));
  expect_slopes(ours, in);
  expect_same_everywhere(ours, of_aten, in);
  expect_same_for_threads(ours, in);
}

TEST(Rope, TakesARowOfAnglesForEachToken) {
  const auto angle_SR = at::randn({11, 3});
  const auto x = at::randn({2, 11, 5, 10});
  const auto by_position = rope(x, at::cos(angle_SR), at::sin(angle_SR));
  const auto angle_TR = at::cat({angle_SR, angle_SR.flip(0)});
  const auto by_token = rope(x, at::cos(angle_TR), at::sin(angle_TR));
  EXPECT_TRUE(at::equal(by_token[0], by_position[0]));
  EXPECT_TRUE(at::equal(by_token[1], rope(x[1].unsqueeze(0), at::cos(angle_SR.flip(0)), at::sin(angle_SR.flip(0)))[0]));
  const auto there = [&](const at::Tensor& t) { return t.to(guarded::kGuarded); };
  EXPECT_TRUE(rope(there(x), there(at::cos(angle_TR)), there(at::sin(angle_TR))).to(at::kCPU).allclose(by_token));
}

TEST(ExpF32, IsWithinTwoUlpsOverItsRange) {
  for (double x = -86.9; x < 87.9; x += 0.0137) {
    const auto value = static_cast<float>(x);
    const double wanted = std::exp(static_cast<double>(value));
    ASSERT_NEAR(detail::exp_f32(value) / wanted, 1.0, 2.4e-7) << value;
  }
  EXPECT_EQ(detail::exp_f32(0.0f), 1.0f);
}

TEST(ExpF32, TakesWhatIsOutOfRange) {
  EXPECT_LT(detail::exp_f32(-std::numeric_limits<float>::infinity()), 1e-37f);
  EXPECT_GT(detail::exp_f32(std::numeric_limits<float>::infinity()), 1e38f);
  EXPECT_TRUE(std::isnan(detail::exp_f32(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace coppice::kernels
