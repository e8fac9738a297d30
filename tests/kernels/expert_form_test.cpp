// Experts with biases and other activations than SwiGLU.

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "coppice/kernels/moe.h"
#include "coppice/kernels/moe_detail.h"
#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

constexpr int64_t kTokens = 90, kDim = 32, kExperts = 5, kTopK = 2, kWidth = 64;  // sizes that AVX-512 could take

struct Case {
  const char* name;
  ExpertActivation activation;
  bool has_gate_up_bias, has_down_bias;
};

class ExpertFormOf : public ::testing::TestWithParam<Case> {
  void SetUp() override { at::set_num_threads(1); }
};

INSTANTIATE_TEST_SUITE_P(Forms, ExpertFormOf,
                         ::testing::Values(Case{"plain", ExpertActivation::kSwiglu, false, false},
                                           Case{"biases", ExpertActivation::kSwiglu, true, true},
                                           Case{"bias_of_down", ExpertActivation::kSwiglu, false, true},
                                           Case{"clamped", ExpertActivation::kClampedSwiglu, false, false},
                                           Case{"clamped_with_biases", ExpertActivation::kClampedSwiglu, true, true}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

struct Inputs {
  std::vector<at::Tensor> leaves;  // x, gate and up, down, gates, then the biases that the form has
  at::Tensor index_TK, grad_TD;

  Inputs to(at::ScalarType dtype, at::ScalarType gates) const {
    Inputs out = *this;
    for (size_t i = 0; i < leaves.size(); ++i) out.leaves[i] = leaves[i].to(i == 3 ? gates : dtype);
    out.grad_TD = grad_TD.to(dtype);
    return out;
  }
};

// Pre-activations of some 5, so that many lie past the clamp at 7.
Inputs make_inputs(const Case& c) {
  at::manual_seed(4);
  Inputs in{{at::randn({kTokens, kDim}), at::randn({kExperts, 2 * kWidth, kDim}),
             at::randn({kExperts, kDim, kWidth}) * 0.3, at::rand({kTokens, kTopK}) + 0.1},
            at::rand({kTokens, kExperts - 1}).argsort(int64_t{1}).narrow(1, 0, kTopK).contiguous(),  // the last: none
            at::randn({kTokens, kDim})};
  if (c.has_gate_up_bias) in.leaves.push_back(at::randn({kExperts, 2 * kWidth}));
  if (c.has_down_bias) in.leaves.push_back(at::randn({kExperts, kDim}));
  return in;
}

ExpertForm form_of(const Case& c, const std::vector<at::Tensor>& leaves) {
  ExpertForm form{.activation = c.activation};
  size_t next = 4;
  if (c.has_gate_up_bias) form.gate_up_bias_EG = leaves[next++];
  if (c.has_down_bias) form.down_bias_ED = leaves[next++];
  return form;
}

/// Output, then the gradients of the leaves; computed on `device`, returned on the CPU.
std::vector<at::Tensor> run(const Case& c, const Inputs& in, MoeKernel kernel, at::Device device = guarded::kCpu) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : in.leaves) leaves.push_back(t.to(device).detach().clone().set_requires_grad(true));
  const auto form = form_of(c, leaves);
  const auto y_TD = moe_experts(leaves[0], leaves[1], leaves[2], in.index_TK.to(device), leaves[3], kernel, form);
  auto out = torch::autograd::grad({y_TD}, leaves, {in.grad_TD.to(device)});
  out.insert(out.begin(), y_TD.detach());
  for (auto& t : out) t = t.to(at::kCPU);
  return out;
}

void expect_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted, double tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const auto scale = wanted[i].abs().max().item<double>();
    EXPECT_LE((found[i].to(at::kDouble) - wanted[i]).abs().max().item<double>(), tolerance * scale) << i;
    EXPECT_GT(scale, 0) << i;
  }
}

TEST_P(ExpertFormOf, FastKernelMatchesTheReferenceInF64) {
  const auto in = make_inputs(GetParam());
  const auto wanted = run(GetParam(), in.to(at::kDouble, at::kDouble), MoeKernel::kReference);
  expect_near(run(GetParam(), in, MoeKernel::kFast), wanted, 3e-6);
  expect_near(run(GetParam(), in, MoeKernel::kReference), wanted, 3e-6);
}

// bf16 has 8 bits: pre-activations, activations, outputs and their gradients are each rounded once. Pre-activations stay
// short of the clamp, past which a rounding could take a value that has no slope.
TEST_P(ExpertFormOf, FastKernelInBf16IsWithinItsRounding) {
  auto in = make_inputs(GetParam()).to(at::kBFloat16, at::kFloat);
  in.leaves[0] = in.leaves[0] * 0.125;
  const auto wanted = run(GetParam(), in.to(at::kDouble, at::kDouble), MoeKernel::kReference);
  expect_near(run(GetParam(), in, MoeKernel::kFast), wanted, 3e-2);
}

// By libtorch's operators; in f64 on the CPU they are exact.
TEST_P(ExpertFormOf, OnAnotherDeviceMatchesTheReferenceInF64) {
  const auto in = make_inputs(GetParam());
  const auto in_f64 = in.to(at::kDouble, at::kDouble);
  const auto wanted = run(GetParam(), in_f64, MoeKernel::kReference);
  expect_near(run(GetParam(), in_f64, MoeKernel::kFast), wanted, 1e-12);
  expect_near(run(GetParam(), in, MoeKernel::kFast, guarded::kGuarded), wanted, 3e-6);
}

// One choice a token with a gate of 1: the output is the pair's own.
TEST_P(ExpertFormOf, TellsTheSquaredNormOfEachPairsOutput) {
  const auto in = make_inputs(GetParam());
  const auto form = form_of(GetParam(), in.leaves);
  const detail::MoeInputs plain{in.leaves[0], in.leaves[1], in.leaves[2], in.index_TK, in.leaves[3], form, true};
  const auto of_libtorch_TK = aten::kExperts.forward(plain).pair_sq_TK;
  for (const auto kernel : {MoeKernel::kFast, MoeKernel::kReference}) {
    at::Tensor sq_TK;
    (void)moe_experts(in.leaves[0], in.leaves[1], in.leaves[2], in.index_TK, in.leaves[3], kernel, form, &sq_TK);
    EXPECT_TRUE(of_libtorch_TK.allclose(sq_TK, 1e-5));
    for (int64_t k = 0; k < kTopK; ++k) {
      const auto index_T1 = in.index_TK.narrow(1, k, 1).contiguous();
      const auto one_TD =
          moe_experts(in.leaves[0], in.leaves[1], in.leaves[2], index_T1, at::ones({kTokens, 1}), kernel, form);
      const auto wanted_T = one_TD.to(at::kDouble).square().sum(1);
      const auto error = (sq_TK.select(1, k) - wanted_T).abs().max().item<double>();
      EXPECT_LE(error, 1e-5 * wanted_T.max().item<double>());
    }
  }
}

TEST_P(ExpertFormOf, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto in = make_inputs(GetParam());
  const auto one = run(GetParam(), in, MoeKernel::kFast);
  at::set_num_threads(3);
  const auto three = run(GetParam(), in, MoeKernel::kFast);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
}

}  // namespace
}  // namespace coppice::kernels
