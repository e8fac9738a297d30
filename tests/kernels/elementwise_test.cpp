// RMSNorm, RoPE and SwiGLU against the same formula in libtorch's operations in f64.

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sin.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/kernels/rope.h"
#include "coppice/kernels/swiglu.h"

namespace coppice::kernels {
namespace {

using Function = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// The output, then the gradient of each input for an output gradient of fixed random values.
std::vector<at::Tensor> run(const Function& f, const std::vector<at::Tensor>& inputs, at::ScalarType dtype) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : inputs) leaves.push_back(t.to(dtype).detach().clone().set_requires_grad(true));
  const auto y = f(leaves);
  at::manual_seed(9);
  const auto grad = at::randn(y.sizes()).to(dtype);
  auto out = torch::autograd::grad({y}, leaves, {grad});
  out.insert(out.begin(), y.detach());
  return out;
}

void expect_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted, double tolerance) {
  for (size_t i = 0; i < found.size(); ++i) {
    const auto error = (found[i].to(at::kDouble) - wanted[i].to(at::kDouble)).abs().max().item<double>();
    EXPECT_LE(error, tolerance * wanted[i].abs().max().item<double>()) << "tensor " << i;
  }
}

void expect_same_function(const Function& ours, const Function& plain, const std::vector<at::Tensor>& inputs) {
  const auto wanted = run(plain, inputs, at::kDouble);
  const auto f32 = run(ours, inputs, at::kFloat);
  expect_near(f32, wanted, 2e-6);
  std::vector<at::Tensor> rounded;
  for (const auto& t : inputs) rounded.push_back(t.to(at::kBFloat16));
  expect_near(run(ours, rounded, at::kBFloat16), run(plain, rounded, at::kDouble), 1.5e-2);

  const int before = at::get_num_threads();
  for (const int threads : {1, 4}) {
    at::set_num_threads(threads);
    const auto again = run(ours, inputs, at::kFloat);
    for (size_t i = 0; i < f32.size(); ++i) EXPECT_TRUE(at::equal(again[i], f32[i])) << threads << " threads";
  }
  at::set_num_threads(before);
}

TEST(RmsNorm, IsTheFormulaWithItsGradients) {
  constexpr double kEpsilon = 1e-3;
  for (const int64_t width : {3, 7, 32, 100}) {
    expect_same_function(
        [&](const auto& in) { return rms_norm(in[0], in[1], kEpsilon); },
        [&](const auto& in) { return in[1] * in[0] * at::rsqrt(in[0].square().mean(-1, true) + kEpsilon); },
        {at::randn({3, 150, width}), at::randn({width})});
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
}

TEST(Swiglu, IsTheFormulaWithItsGradients) {
  expect_same_function([](const auto& in) { return swiglu(in[0], in[1]); },
                       [](const auto& in) { return at::silu(in[0]) * in[1]; },
                       {at::randn({201, 101}) * 4, at::randn({201, 101})});
}

TEST(Rope, TurnsTheLeadingDimensionsAndPassesTheRest) {
  const auto angle_SR = at::randn({11, 3});
  const auto cos = at::cos(angle_SR), sin = at::sin(angle_SR);
  expect_same_function([&](const auto& in) { return rope(in[0], cos, sin); },
                       [&](const auto& in) {
                         const auto c = cos.to(at::kDouble).unsqueeze(1), s = sin.to(at::kDouble).unsqueeze(1);
                         const auto a = in[0].narrow(3, 0, 3), b = in[0].narrow(3, 3, 3);
                         return at::cat({a * c - b * s, b * c + a * s, in[0].narrow(3, 6, 4)}, 3);
                       },
                       {at::randn({2, 11, 5, 10})});
}

TEST(Rope, TakesARowOfAnglesForEachToken) {
  const auto angle_SR = at::randn({11, 3});
  const auto x = at::randn({2, 11, 5, 10});
  const auto by_position = rope(x, at::cos(angle_SR), at::sin(angle_SR));
  const auto angle_TR = at::cat({angle_SR, angle_SR.flip(0)});
  const auto by_token = rope(x, at::cos(angle_TR), at::sin(angle_TR));
  EXPECT_TRUE(at::equal(by_token[0], by_position[0]));
  EXPECT_TRUE(at::equal(by_token[1], rope(x[1].unsqueeze(0), at::cos(angle_SR.flip(0)), at::sin(angle_SR.flip(0)))[0]));
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
