#include "coppice/kernels/linear.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "coppice/kernels/elementwise_detail.h"
#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

// T tokens, D and N columns of the input and of the output.
struct Case {
  int64_t tokens, dim, out;
};
class Linear : public ::testing::TestWithParam<Case> {};
// The first four are computed by our own loops, the others by libtorch.
INSTANTIATE_TEST_SUITE_P(Sizes, Linear,
                         ::testing::Values(Case{300, 64, 64}, Case{1, 16, 128}, Case{131, 48, 32}, Case{7, 128, 16},
                                           Case{10, 64, 8}, Case{10, 20, 64}, Case{9, 256, 64}));

/// The output, then the gradients of x and w.
template <class F>
std::vector<at::Tensor> run(const Case& c, at::ScalarType dtype, at::Device device, const F& f) {
  at::manual_seed(1);
  const auto leaf = [&](int64_t rows, int64_t cols) {
    return at::randn({rows, cols}).to(dtype).to(device).set_requires_grad(true);
  };
  const auto x = leaf(c.tokens, c.dim), w = leaf(c.out, c.dim), grad = at::randn({c.tokens, c.out}).to(dtype);
  const auto out = f(x, w);
  auto results = torch::autograd::grad({out}, {x, w}, {grad.to(device)});
  results.insert(results.begin(), out.detach());
  return results;
}

TEST_P(Linear, IsThatOfLibtorchToRounding) {
  const auto own = [](const at::Tensor& x, const at::Tensor& w) { return kernels::linear(x, w); };
  const auto theirs = [](const at::Tensor& x, const at::Tensor& w) { return at::linear(x, w); };
  const auto wanted = run(GetParam(), at::kDouble, at::kCPU, theirs);
  for (const at::Device device : {guarded::kCpu, guarded::kGuarded}) {
    const auto found = run(GetParam(), at::kFloat, device, own);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double scale = wanted[i].abs().max().item<double>();
      EXPECT_LE((found[i].cpu().to(at::kDouble) - wanted[i]).abs().max().item<double>(), 2e-6 * scale) << i;
    }
  }
}

// libtorch's own products may differ.
TEST_P(Linear, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto own = [](const at::Tensor& x, const at::Tensor& w) { return kernels::linear(x, w); };
  const auto& [tokens, dim, out] = GetParam();
  if (!cpu::has_linear_for(at::empty({tokens, dim}), at::empty({out, dim}))) GTEST_SKIP() << "computed by libtorch";
  at::set_num_threads(1);
  const auto wanted = run(GetParam(), at::kFloat, at::kCPU, own);
  at::set_num_threads(3);
  const auto found = run(GetParam(), at::kFloat, at::kCPU, own);
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(found[i].equal(wanted[i])) << i;
}

TEST(LinearWithBias, AddsIt) {
  const auto x = at::randn({4, 16}), w = at::randn({32, 16}), bias = at::randn({32});
  EXPECT_TRUE(kernels::linear(x, w, bias).allclose(kernels::linear(x, w) + bias, 1e-5, 1e-5));
}

}  // namespace
}  // namespace coppice::kernels
