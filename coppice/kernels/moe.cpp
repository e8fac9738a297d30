#include "coppice/kernels/moe.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct FastExperts : torch::autograd::Function<FastExperts> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD,
                            const at::Tensor& w_down_EDF, const at::Tensor& index_TK, const at::Tensor& gate_TK,
                            at::Tensor* pair_sq_TK) {
    const detail::MoeInputs in{x_TD.contiguous(),     w_gate_up_EGD.contiguous(), w_down_EDF.contiguous(),
                               index_TK.contiguous(), gate_TK.contiguous(),       pair_sq_TK != nullptr};
    auto out = detail::moe_forward_cpu(in);
    if (pair_sq_TK) *pair_sq_TK = out.pair_sq_TK;
    ctx->save_for_backward({in.x_TD, in.w_gate_up_EGD, in.w_down_EDF, in.index_TK, in.gate_TK, out.hidden_PG});
    return out.y_TD;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto g =
        detail::moe_backward_cpu({saved[0], saved[1], saved[2], saved[3], saved[4]}, saved[5], grads[0].contiguous());
    return {g.x_TD, g.w_gate_up_EGD, g.w_down_EDF, at::Tensor(), g.gate_TK, at::Tensor()};
  }
};

at::Tensor fast_experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD, const at::Tensor& w_down_EDF,
                        const at::Tensor& index_TK, const at::Tensor& gate_TK, at::Tensor* pair_sq_TK) {
  return FastExperts::apply(x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, pair_sq_TK);
}

at::Tensor reference_experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD, const at::Tensor& w_down_EDF,
                             const at::Tensor& index_TK, const at::Tensor& gate_TK, at::Tensor* pair_sq_TK) {
  const int64_t width = w_down_EDF.size(2);
  auto y_TD = at::zeros(x_TD.sizes(), x_TD.options().dtype(gate_TK.scalar_type()));
  if (pair_sq_TK) *pair_sq_TK = at::zeros(gate_TK.sizes(), gate_TK.options());
  for (int64_t e = 0; e < w_down_EDF.size(0); ++e) {
    const auto pairs = at::where(index_TK == e);  // tokens, slots
    const auto hidden_PG = at::linear(x_TD.index({pairs[0]}), w_gate_up_EGD[e]);
    const auto active_PF = at::silu(hidden_PG.narrow(1, 0, width)) * hidden_PG.narrow(1, width, width);
    const auto out_PD = at::linear(active_PF, w_down_EDF[e]).to(y_TD.scalar_type());
    if (pair_sq_TK) pair_sq_TK->index_put_({pairs[0], pairs[1]}, out_PD.detach().square().sum(1));
    y_TD = at::index_add(y_TD, 0, pairs[0], out_PD * gate_TK.index({pairs[0], pairs[1]}).unsqueeze(1));
  }
  return y_TD.to(x_TD.scalar_type());
}

}  // namespace

at::Tensor moe_experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD, const at::Tensor& w_down_EDF,
                       const at::Tensor& index_TK, const at::Tensor& gate_TK, MoeKernel kernel,
                       at::Tensor* pair_sq_TK) {
  const int64_t experts = w_down_EDF.size(0), dim = w_down_EDF.size(1), width = w_down_EDF.size(2);
  COPPICE_CHECK(x_TD.dim() == 2 && x_TD.size(1) == dim);
  COPPICE_CHECK(w_gate_up_EGD.sizes() == at::IntArrayRef({experts, 2 * width, dim}));
  COPPICE_CHECK(index_TK.dim() == 2 && index_TK.size(0) == x_TD.size(0) && index_TK.sizes() == gate_TK.sizes());
  const auto run = kernel == MoeKernel::kReference ? reference_experts : fast_experts;
  return run(x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, pair_sq_TK);
}

at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts) {
  const auto index = index_TK.contiguous();
  const auto counts = at::zeros({num_experts}, index.options());
  auto* const count = counts.mutable_data_ptr<int64_t>();
  const auto* const expert = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    COPPICE_CHECK(expert[i] >= 0 && expert[i] < num_experts, "expert ", expert[i]);
    ++count[expert[i]];
  }
  return counts;
}

}  // namespace coppice::kernels
