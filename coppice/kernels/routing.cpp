#include "coppice/kernels/routing.h"

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels {

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
