// Experts with biases and other activations than SwiGLU.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "coppice/kernels/moe.h"
#include "coppice/kernels/moe_detail.h"
#include "tests/guarded/devices.h"
#include "tests/kernels/expert_forms.h"

namespace coppice::kernels {
namespace {

using testing::expect_forms_near;
using testing::form_of;
using testing::FormInputs;
using testing::make_inputs;

class ExpertFormOf : public ::testing::TestWithParam<testing::FormCase> {
  void SetUp() override { at::set_num_threads(1); }
};
INSTANTIATE_TEST_SUITE_P(Forms, ExpertFormOf, testing::all_forms(), testing::form_name);

/// Output, then the gradients of the leaves; computed on `device`, returned on the CPU.
std::vector<at::Tensor> run(const testing::FormCase& c, const FormInputs& in, MoeKernel kernel,
                            at::Device device = guarded::kCpu) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : in.leaves) leaves.push_back(t.to(device).detach().clone().set_requires_grad(true));
  const auto form = form_of(c, leaves);
  const auto y_TD = moe_experts(leaves[0], leaves[1], leaves[2], in.index_TK.to(device), leaves[3], kernel, form);
  auto out = torch::autograd::grad({y_TD}, leaves, {in.grad_TD.to(device)});
  out.insert(out.begin(), y_TD.detach());
  for (auto& t : out) t = t.to(at::kCPU);
  return out;
}

TEST_P(ExpertFormOf, FastKernelMatchesTheReferenceInF64) {
  const auto in = make_inputs(GetParam());
  const auto wanted = run(GetParam(), in.to(at::kDouble, at::kDouble), MoeKernel::kReference);
  expect_forms_near(run(GetParam(), in, MoeKernel::kFast), wanted, 3e-6);
  expect_forms_near(run(GetParam(), in, MoeKernel::kReference), wanted, 3e-6);
}

// bf16 has 8 bits: pre-activations, activations, outputs and their gradients are each rounded once. Pre-activations stay
// short of the clamp, past which a rounding could take a value that has no slope.
TEST_P(ExpertFormOf, FastKernelInBf16IsWithinItsRounding) {
  auto in = make_inputs(GetParam()).to(at::kBFloat16, at::kFloat);
  in.leaves[0] = in.leaves[0] * 0.125;
  const auto wanted = run(GetParam(), in.to(at::kDouble, at::kDouble), MoeKernel::kReference);
  expect_forms_near(run(GetParam(), in, MoeKernel::kFast), wanted, 3e-2);
}

// By libtorch's operators; in f64 on the CPU they are exact.
TEST_P(ExpertFormOf, OnAnotherDeviceMatchesTheReferenceInF64) {
  const auto in = make_inputs(GetParam());
  const auto in_f64 = in.to(at::kDouble, at::kDouble);
  const auto wanted = run(GetParam(), in_f64, MoeKernel::kReference);
  expect_forms_near(run(GetParam(), in_f64, MoeKernel::kFast), wanted, 1e-12);
  expect_forms_near(run(GetParam(), in, MoeKernel::kFast, guarded::kGuarded), wanted, 3e-6);
}

TEST_P(ExpertFormOf, OnAGpuMatchesTheReferenceInF64) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU, or a build without CUDA (preset `cuda`)";
  const auto in = make_inputs(GetParam());
  const auto wanted = run(GetParam(), in.to(at::kDouble, at::kDouble), MoeKernel::kReference);
  expect_forms_near(run(GetParam(), in, MoeKernel::kFast, at::kCUDA), wanted, 1e-5);
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
    for (int64_t k = 0; k < testing::form_sizes::kTopK; ++k) {
      const auto index_T1 = in.index_TK.narrow(1, k, 1).contiguous();
      const auto one_TD = moe_experts(in.leaves[0], in.leaves[1], in.leaves[2], index_T1,
                                      at::ones({testing::form_sizes::kTokens, 1}), kernel, form);
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
