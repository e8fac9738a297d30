// T tokens, E experts, N groups, K choices.

#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "coppice/nn/router_detail.h"

namespace coppice::nn::detail {
namespace {

/// Indices along the last dimension in falling order of score; equal scores by rising index.
at::Tensor falling_order(const at::Tensor& score, int64_t count) {
  return std::get<1>(at::sort(score, /*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(-1, 0, count);
}

/// Whether an expert is in one of the best groups; a group's score is that of its best expert or the sum of its two
/// best.
at::Tensor in_best_groups(const at::Tensor& choice_TE, const families::Routing& routing) {
  const int64_t size = choice_TE.size(1) / routing.num_groups;
  const auto by_group_TNE = choice_TE.view({choice_TE.size(0), routing.num_groups, size});
  const int64_t counted = routing.group_score == families::GroupScore::kBestTwo ? std::min<int64_t>(2, size) : 1;
  const auto best_TN2 = std::get<0>(by_group_TNE.sort(-1, /*descending=*/true)).narrow(-1, 0, counted);
  const auto kept_TN = at::zeros({choice_TE.size(0), routing.num_groups}, choice_TE.options().dtype(at::kBool))
                           .scatter_(1, falling_order(best_TN2.sum(-1), routing.top_groups), true);
  return kept_TN.unsqueeze(2).expand_as(by_group_TNE).reshape(choice_TE.sizes());
}

}  // namespace

at::Tensor choose_by_sorting(const at::Tensor& choice_TE, const families::Routing& routing, int64_t top_k) {
  auto score_TE = choice_TE.contiguous();
  if (routing.num_groups > 1) {
    score_TE =
        score_TE.masked_fill(in_best_groups(score_TE, routing).logical_not(), -std::numeric_limits<double>::infinity());
  }
  return falling_order(score_TE, top_k).contiguous();
}

}  // namespace coppice::nn::detail
