#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels::aten {
namespace {

at::Tensor activate(const at::Tensor& gate, const at::Tensor& up, ExpertActivation activation) {
  if (activation == ExpertActivation::kSwiglu) return at::silu(gate) * up;
  const auto held = at::clamp_max(gate, detail::kSwigluLimit);
  return held * at::sigmoid(held * detail::kSwigluSlope) *
         (at::clamp(up, -detail::kSwigluLimit, detail::kSwigluLimit) + 1);
}

}  // namespace

at::Tensor reference_experts(const detail::MoeInputs& in, at::Tensor* pair_sq_TK) {
  const auto row = [](const at::Tensor& bias, int64_t e) { return bias.defined() ? bias[e] : bias; };
  const int64_t width = in.w_down_EDF.size(2);
  auto y_TD = at::zeros(in.x_TD.sizes(), in.x_TD.options().dtype(in.gate_TK.scalar_type()));
  if (pair_sq_TK) *pair_sq_TK = at::zeros(in.gate_TK.sizes(), in.gate_TK.options());
  for (int64_t e = 0; e < in.w_down_EDF.size(0); ++e) {
    const auto pairs = at::where(in.index_TK == e);  // tokens, slots
    const auto hidden_PG = at::linear(in.x_TD.index({pairs[0]}), in.w_gate_up_EGD[e], row(in.form.gate_up_bias_EG, e));
    const auto active_PF =
        activate(hidden_PG.narrow(1, 0, width), hidden_PG.narrow(1, width, width), in.form.activation);
    const auto out_PD = at::linear(active_PF, in.w_down_EDF[e], row(in.form.down_bias_ED, e)).to(y_TD.scalar_type());
    if (pair_sq_TK) pair_sq_TK->index_put_({pairs[0], pairs[1]}, out_PD.detach().square().sum(1));
    y_TD = at::index_add(y_TD, 0, pairs[0], out_PD * in.gate_TK.index({pairs[0], pairs[1]}).unsqueeze(1));
  }
  return y_TD.to(in.x_TD.scalar_type());
}

}  // namespace coppice::kernels::aten
