#include "coppice/kernels/moe.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "coppice/base/check.h"
#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct FastExperts : torch::autograd::Function<FastExperts> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD,
                            const at::Tensor& w_down_EDF, const at::Tensor& index_TK, const at::Tensor& gate_TK,
                            const std::optional<at::Tensor>& gate_up_bias_EG,
                            const std::optional<at::Tensor>& down_bias_ED, int64_t activation, at::Tensor* pair_sq_TK) {
    const detail::MoeInputs in{
        x_TD.contiguous(),
        w_gate_up_EGD.contiguous(),
        w_down_EDF.contiguous(),
        index_TK.contiguous(),
        gate_TK.contiguous(),
        {static_cast<ExpertActivation>(activation), contiguous(gate_up_bias_EG), contiguous(down_bias_ED)},
        pair_sq_TK != nullptr};
    auto out = in.x_TD.is_cuda() ? detail::moe_forward_cuda(in) : detail::moe_forward_cpu(in);
    if (pair_sq_TK) *pair_sq_TK = out.pair_sq_TK;
    ctx->save_for_backward({in.x_TD, in.w_gate_up_EGD, in.w_down_EDF, in.index_TK, in.gate_TK, in.form.gate_up_bias_EG,
                            in.form.down_bias_ED, out.hidden_PG});
    ctx->saved_data["activation"] = activation;
    return out.y_TD;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const ExpertForm form{static_cast<ExpertActivation>(ctx->saved_data["activation"].toInt()), saved[5], saved[6]};
    const auto backward = saved[0].is_cuda() ? detail::moe_backward_cuda : detail::moe_backward_cpu;
    auto g = backward({saved[0], saved[1], saved[2], saved[3], saved[4], form}, saved[7], grads[0].contiguous());
    return {g.x_TD,         g.w_gate_up_EGD, g.w_down_EDF, at::Tensor(), g.gate_TK, g.gate_up_bias_EG,
            g.down_bias_ED, at::Tensor(),    at::Tensor()};
  }

  static at::Tensor contiguous(const std::optional<at::Tensor>& x) { return x ? x->contiguous() : at::Tensor(); }
};

at::Tensor reference_activation(const at::Tensor& gate, const at::Tensor& up, ExpertActivation activation) {
  if (activation == ExpertActivation::kSwiglu) return at::silu(gate) * up;
  const auto held = at::clamp_max(gate, detail::kSwigluLimit);
  return held * at::sigmoid(held * detail::kSwigluSlope) *
         (at::clamp(up, -detail::kSwigluLimit, detail::kSwigluLimit) + 1);
}

at::Tensor reference_experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD, const at::Tensor& w_down_EDF,
                             const at::Tensor& index_TK, const at::Tensor& gate_TK, const ExpertForm& form,
                             at::Tensor* pair_sq_TK) {
  const auto row = [](const at::Tensor& bias, int64_t e) { return bias.defined() ? bias[e] : bias; };
  const int64_t width = w_down_EDF.size(2);
  auto y_TD = at::zeros(x_TD.sizes(), x_TD.options().dtype(gate_TK.scalar_type()));
  if (pair_sq_TK) *pair_sq_TK = at::zeros(gate_TK.sizes(), gate_TK.options());
  for (int64_t e = 0; e < w_down_EDF.size(0); ++e) {
    const auto pairs = at::where(index_TK == e);  // tokens, slots
    const auto hidden_PG = at::linear(x_TD.index({pairs[0]}), w_gate_up_EGD[e], row(form.gate_up_bias_EG, e));
    const auto active_PF =
        reference_activation(hidden_PG.narrow(1, 0, width), hidden_PG.narrow(1, width, width), form.activation);
    const auto out_PD = at::linear(active_PF, w_down_EDF[e], row(form.down_bias_ED, e)).to(y_TD.scalar_type());
    if (pair_sq_TK) pair_sq_TK->index_put_({pairs[0], pairs[1]}, out_PD.detach().square().sum(1));
    y_TD = at::index_add(y_TD, 0, pairs[0], out_PD * gate_TK.index({pairs[0], pairs[1]}).unsqueeze(1));
  }
  return y_TD.to(x_TD.scalar_type());
}

}  // namespace

at::Tensor moe_experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD, const at::Tensor& w_down_EDF,
                       const at::Tensor& index_TK, const at::Tensor& gate_TK, MoeKernel kernel, const ExpertForm& form,
                       at::Tensor* pair_sq_TK) {
  const int64_t experts = w_down_EDF.size(0), dim = w_down_EDF.size(1), width = w_down_EDF.size(2);
  COPPICE_CHECK(x_TD.dim() == 2 && x_TD.size(1) == dim);
  COPPICE_CHECK(w_gate_up_EGD.sizes() == at::IntArrayRef({experts, 2 * width, dim}));
  COPPICE_CHECK(index_TK.dim() == 2 && index_TK.size(0) == x_TD.size(0) && index_TK.sizes() == gate_TK.sizes());
  for (const at::Tensor* t : {&w_gate_up_EGD, &w_down_EDF, &index_TK, &gate_TK}) {
    COPPICE_CHECK(t->device() == x_TD.device());
  }
  COPPICE_CHECK(!form.gate_up_bias_EG.defined() ||
                form.gate_up_bias_EG.sizes() == at::IntArrayRef({experts, 2 * width}));
  COPPICE_CHECK(!form.down_bias_ED.defined() || form.down_bias_ED.sizes() == at::IntArrayRef({experts, dim}));
  if (kernel == MoeKernel::kReference) {
    return reference_experts(x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, form, pair_sq_TK);
  }
  // A custom autograd function does not accept undefined tensors.
  const auto if_defined = [](const at::Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
  return FastExperts::apply(x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, if_defined(form.gate_up_bias_EG),
                            if_defined(form.down_bias_ED), static_cast<int64_t>(form.activation), pair_sq_TK);
}

at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts) {
  if (index_TK.is_cuda()) {  // integer sums do not depend on the order
    const auto index = index_TK.flatten();
    return at::zeros({num_experts}, index.options()).scatter_add_(0, index, at::ones_like(index));
  }
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
