#include "coppice/kernels/moe.h"

#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const detail::MoeVariant& variant_for(const detail::MoeInputs& in) {
  return *detail::pick(in.x_TD, &cpu::kExperts, cuda::experts_for(in), &aten::kExperts);
}

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
    auto out = variant_for(in).forward(in);
    if (pair_sq_TK) *pair_sq_TK = out.pair_sq_TK;
    variable_list saved{in.x_TD,    in.w_gate_up_EGD,        in.w_down_EDF,        in.index_TK,
                        in.gate_TK, in.form.gate_up_bias_EG, in.form.down_bias_ED, out.hidden_PG};
    saved.insert(saved.end(), out.order.begin(), out.order.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["activation"] = activation;
    return out.y_TD;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const ExpertForm form{static_cast<ExpertActivation>(ctx->saved_data["activation"].toInt()), saved[5], saved[6]};
    const detail::MoeInputs in{saved[0], saved[1], saved[2], saved[3], saved[4], form};
    const detail::MoeForward kept{.y_TD = {}, .hidden_PG = saved[7], .order = {saved.begin() + 8, saved.end()}};
    auto g = variant_for(in).backward(in, kept, grads[0].contiguous());
    return {g.x_TD,         g.w_gate_up_EGD, g.w_down_EDF, at::Tensor(), g.gate_TK, g.gate_up_bias_EG,
            g.down_bias_ED, at::Tensor(),    at::Tensor()};
  }

  static at::Tensor contiguous(const std::optional<at::Tensor>& x) { return x ? x->contiguous() : at::Tensor(); }
};

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
    return aten::reference_experts({x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, form}, pair_sq_TK);
  }
  // A custom autograd function does not accept undefined tensors.
  const auto if_defined = [](const at::Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
  return FastExperts::apply(x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK, if_defined(form.gate_up_bias_EG),
                            if_defined(form.down_bias_ED), static_cast<int64_t>(form.activation), pair_sq_TK);
}

}  // namespace coppice::kernels
