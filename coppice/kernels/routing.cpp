#include "coppice/kernels/routing.h"

#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Gates : torch::autograd::Function<Gates> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& value_TE, const at::Tensor& index_TK, bool softmax,
                            bool renormalise, double epsilon, double scaling) {
    const auto out = cpu::gates_forward(value_TE.contiguous(), index_TK, {softmax, renormalise, epsilon, scaling});
    ctx->save_for_backward({out.gate_TK, out.share_TK, index_TK});
    ctx->saved_data["experts"] = value_TE.size(1);
    ctx->saved_data["form"] = std::vector<double>{softmax ? 1.0 : 0.0, renormalise ? 1.0 : 0.0, epsilon, scaling};
    return out.gate_TK;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto form = ctx->saved_data["form"].toDoubleVector();
    const auto grad_TE =
        cpu::gates_backward({saved[0], saved[1]}, saved[2], grads[0].contiguous(), ctx->saved_data["experts"].toInt(),
                            {form[0] != 0, form[1] != 0, form[2], form[3]});
    return {grad_TE, {}, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice) {
  COPPICE_CHECK(score_TN.dim() == 2 && score_TN.scalar_type() == at::kFloat);
  const int64_t candidates = score_TN.size(1);
  COPPICE_CHECK(choice.num_groups >= 1 && candidates % choice.num_groups == 0, choice.num_groups, " groups of ",
                candidates);
  COPPICE_CHECK(choice.top_groups >= 1 && choice.top_groups <= choice.num_groups);
  COPPICE_CHECK(choice.top_k >= 1 && choice.top_k <= candidates / choice.num_groups * choice.top_groups, choice.top_k,
                " of ", candidates);
  return detail::pick(score_TN, cpu::choose_top_k, aten::choose_top_k)(score_TN.detach().contiguous(), choice);
}

at::Tensor gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const GateForm& form) {
  COPPICE_CHECK(value_TE.dim() == 2 && index_TK.scalar_type() == at::kLong);
  COPPICE_CHECK(value_TE.scalar_type() == at::kFloat || value_TE.scalar_type() == at::kDouble);
  COPPICE_CHECK(index_TK.dim() == 2 && index_TK.size(0) == value_TE.size(0));
  if (!detail::takes_loops(value_TE)) return aten::gates(value_TE, index_TK, form);
  return Gates::apply(value_TE, index_TK.contiguous(), form.softmax, form.renormalise, form.epsilon, form.scaling);
}

at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts) {
  COPPICE_CHECK(index_TK.scalar_type() == at::kLong);
  return detail::pick(index_TK, cpu::expert_counts, aten::expert_counts)(index_TK.contiguous(), num_experts);
}

at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor) {
  COPPICE_CHECK(index_TK.scalar_type() == at::kLong && index_TK.sizes() == gate_TK.sizes());
  return detail::pick(gate_TK, cpu::gate_mass, aten::gate_mass)(index_TK.contiguous(), gate_TK.detach().contiguous(),
                                                                num_experts, divisor);
}

}  // namespace coppice::kernels
