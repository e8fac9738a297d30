// What a GPU does for experts with biases, clamped SwiGLU and norms of outputs, its pieces run on the host.

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <vector>

#include "coppice/kernels/cuda/moe_sorted_detail.h"
#include "coppice/kernels/cuda/sorted_rows_pieces_detail.h"
#include "coppice/kernels/moe.h"
#include "tests/kernels/expert_forms.h"
#include "tests/kernels/pieces_on_host.h"

namespace coppice::kernels {
namespace {

using cuda::ExpertGemms;
using testing::expect_forms_near;
using testing::FormInputs;
using testing::make_inputs;
using testing::OnHost;

struct Results {
  std::vector<at::Tensor> of_leaves;  // output, then the gradients of the leaves
  at::Tensor pair_sq_TK;
};

template <class T>
Results run_as(const detail::MoeInputs& in, const at::Tensor& grad_TD, ExpertGemms kind) {
  const auto out = cuda::SortedExperts<OnHost, T>(in, {}, kind).forward();
  EXPECT_EQ(out.order.size(), kind == ExpertGemms::kLoop ? 4 : 3);
  const auto g = cuda::SortedExperts<OnHost, T>(in, {}, out).backward(out.hidden_PG, grad_TD);
  Results results{{out.y_TD, g.x_TD, g.w_gate_up_EGD, g.w_down_EDF, g.gate_TK}, out.pair_sq_TK};
  for (const auto& bias : {g.gate_up_bias_EG, g.down_bias_ED}) {
    if (bias.defined()) results.of_leaves.push_back(bias);
  }
  return results;
}

Results run(const testing::FormCase& c, const FormInputs& in, ExpertGemms kind) {
  const detail::MoeInputs inputs{in.leaves[0],         in.leaves[1], in.leaves[2],
                                 in.index_TK,          in.leaves[3], form_of(c, in.leaves),
                                 /*with_pair_sq=*/true};
  return in.leaves[0].scalar_type() == at::kFloat ? run_as<float>(inputs, in.grad_TD, kind)
                                                  : run_as<cuda::Bf16>(inputs, in.grad_TD, kind);
}

/// Of the reference in f64.
Results wanted_of(const testing::FormCase& c, const FormInputs& in) {
  const auto exact = in.to(at::kDouble, at::kDouble);
  std::vector<at::Tensor> leaves;
  for (const auto& t : exact.leaves) leaves.push_back(t.detach().clone().set_requires_grad(true));
  Results out;
  const auto y_TD = moe_experts(leaves[0], leaves[1], leaves[2], in.index_TK, leaves[3], MoeKernel::kReference,
                                form_of(c, leaves), &out.pair_sq_TK);
  out.of_leaves = torch::autograd::grad({y_TD}, leaves, {exact.grad_TD});
  out.of_leaves.insert(out.of_leaves.begin(), y_TD.detach());
  return out;
}

class SortedExpertForms : public ::testing::TestWithParam<testing::FormCase> {
  void SetUp() override { at::set_num_threads(1); }
};
INSTANTIATE_TEST_SUITE_P(Forms, SortedExpertForms, testing::all_forms(), testing::form_name);

TEST_P(SortedExpertForms, MatchTheReferenceInF64) {
  const auto in = make_inputs(GetParam());
  const auto found = run(GetParam(), in, ExpertGemms::kLoop), wanted = wanted_of(GetParam(), in);
  expect_forms_near(found.of_leaves, wanted.of_leaves, 3e-6);
  expect_forms_near({found.pair_sq_TK}, {wanted.pair_sq_TK}, 3e-6);
}

// As ExpertFormOf.FastKernelInBf16IsWithinItsRounding.
TEST_P(SortedExpertForms, InBf16AreWithinItsRounding) {
  auto in = make_inputs(GetParam()).to(at::kBFloat16, at::kFloat);
  in.leaves[0] = in.leaves[0] * 0.125;
  const auto wanted = wanted_of(GetParam(), in);
  for (const auto kind : {ExpertGemms::kLoop, ExpertGemms::kGrouped}) {
    const auto found = run(GetParam(), in, kind);
    expect_forms_near(found.of_leaves, wanted.of_leaves, 3e-2);
    expect_forms_near({found.pair_sq_TK}, {wanted.pair_sq_TK}, 3e-2);
  }
}

TEST_P(SortedExpertForms, LieAtAnyAddress) {
  auto in = make_inputs(GetParam());
  const auto wanted = run(GetParam(), in, ExpertGemms::kLoop);
  for (size_t i = 4; i < in.leaves.size(); ++i) {
    const auto shifted = at::zeros({in.leaves[i].numel() + 1}).narrow(0, 1, in.leaves[i].numel());
    in.leaves[i] = shifted.view(in.leaves[i].sizes()).copy_(in.leaves[i]);
  }
  const auto found = run(GetParam(), in, ExpertGemms::kLoop);
  expect_forms_near(found.of_leaves, wanted.of_leaves, 1e-6);
  expect_forms_near({found.pair_sq_TK}, {wanted.pair_sq_TK}, 1e-6);
}

}  // namespace
}  // namespace coppice::kernels
