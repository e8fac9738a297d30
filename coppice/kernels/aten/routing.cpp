#include <ATen/ops/gather.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels::aten {
namespace {

/// Indices along the last dimension in falling order of score; equal scores by rising index.
at::Tensor falling_order(const at::Tensor& score, int64_t count) {
  return std::get<1>(at::sort(score, /*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(-1, 0, count);
}

/// Whether a candidate is in one of the best groups.
at::Tensor in_best_groups(const at::Tensor& score_TN, const TopK& choice) {
  const int64_t tokens = score_TN.size(0), groups = choice.num_groups, size = score_TN.size(1) / groups;
  const auto by_group = score_TN.view({tokens, groups, size});
  const int64_t counted = choice.best_two ? std::min<int64_t>(2, size) : 1;
  const auto best = std::get<0>(by_group.sort(-1, /*descending=*/true)).narrow(-1, 0, counted);
  const auto kept = at::zeros({tokens, groups}, score_TN.options().dtype(at::kBool))
                        .scatter_(1, falling_order(best.sum(-1), choice.top_groups), true);
  return kept.unsqueeze(2).expand_as(by_group).reshape(score_TN.sizes());
}

}  // namespace

at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice) {
  auto left_TN = score_TN;
  if (choice.num_groups > 1) {
    left_TN =
        left_TN.masked_fill(in_best_groups(left_TN, choice).logical_not(), -std::numeric_limits<double>::infinity());
  }
  return falling_order(left_TN, choice.top_k).contiguous();
}

at::Tensor gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const GateForm& form) {
  auto gate_TK = at::gather(value_TE, 1, index_TK);
  if (form.softmax) gate_TK = at::softmax(gate_TK, -1);
  if (form.renormalise) gate_TK = gate_TK / (gate_TK.sum(-1, true) + form.epsilon);
  return form.scaling == 1.0 ? gate_TK : gate_TK * form.scaling;
}

// Sums of integers do not depend on the order.
at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts) {
  const auto index = index_TK.flatten();
  return at::zeros({num_experts}, index.options()).scatter_add_(0, index, at::ones_like(index));
}

// index_put_ that accumulates adds in the order of its values: one after the other on the CPU, sorted on a GPU.
at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor) {
  return at::zeros({num_experts}, gate_TK.options().dtype(at::kDouble))
      .index_put_({index_TK.flatten()}, gate_TK.flatten().to(at::kDouble) / divisor, /*accumulate=*/true);
}

}  // namespace coppice::kernels::aten
