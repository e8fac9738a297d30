#include "coppice/nn/router.h"

#include <ATen/ops/_assert_async.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/kernels/parallel.h"
#include "coppice/nn/border.h"
#include "coppice/nn/router_detail.h"

namespace coppice::nn {
namespace {

using families::GateFunction;

constexpr int64_t kTokensPerTask = 256;
constexpr double kSumTolerance = 1e-3;  // relative tolerance of f32 sums over the tokens of a batch
constexpr float kNever = -std::numeric_limits<float>::infinity();

/// The indices of the `k` largest of `n` scores in falling order; equal scores by rising index.
void top_k_of(const float* score, int64_t n, int64_t k, int64_t* index) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t at = found < k ? found++ : k;
    while (at > 0 && score[i] > score[index[at - 1]]) {
      if (at < k) index[at] = index[at - 1];
      --at;
    }
    if (at < k) index[at] = i;
  }
}

/// Excludes experts outside of the best groups; a group's score is that of its best expert or the sum of its two best.
void keep_best_groups(float* score, int64_t num_experts, const families::Routing& routing,
                      std::vector<float>& group_score, std::vector<int64_t>& best) {
  const int64_t num_groups = routing.num_groups, top_groups = routing.top_groups, size = num_experts / num_groups;
  const bool best_two = routing.group_score == families::GroupScore::kBestTwo && size > 1;
  int64_t top_two[2];
  for (int64_t g = 0; g < num_groups; ++g) {
    const float* const group = score + g * size;
    top_k_of(group, size, std::min<int64_t>(2, size), top_two);
    group_score[g] = best_two ? group[top_two[0]] + group[top_two[1]] : group[top_two[0]];
  }
  top_k_of(group_score.data(), num_groups, top_groups, best.data());
  for (int64_t g = 0; g < num_groups; ++g) {
    const bool kept = std::find(best.begin(), best.begin() + top_groups, g) != best.begin() + top_groups;
    if (!kept) std::fill(score + g * size, score + (g + 1) * size, kNever);
  }
}

}  // namespace

at::Tensor detail::choose(const at::Tensor& choice_TN, const families::Routing& routing, int64_t top_k) {
  if (!choice_TN.is_cpu()) return choose_by_sorting(choice_TN, routing, top_k);
  const auto score_TN = choice_TN.contiguous();
  const int64_t tokens = score_TN.size(0), experts = score_TN.size(1);
  const auto index_TK = at::empty({tokens, top_k}, score_TN.options().dtype(at::kLong));
  const auto* const score = score_TN.const_data_ptr<float>();
  auto* const index = index_TK.mutable_data_ptr<int64_t>();
  kernels::parallel_ranges(tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> row(experts), group_score(routing.num_groups);
    std::vector<int64_t> best(routing.top_groups);
    for (int64_t t = begin; t < end; ++t) {
      std::copy_n(score + t * experts, experts, row.data());
      if (routing.num_groups > 1) {
        keep_best_groups(row.data(), experts, routing, group_score, best);
      }
      top_k_of(row.data(), experts, top_k, index + t * top_k);
    }
  });
  return index_TK;
}

at::Tensor detail::gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const families::Routing& routing) {
  auto gate_TK = at::gather(value_TE, 1, index_TK);
  if (routing.gate == GateFunction::kTopKSoftmax) gate_TK = at::softmax(gate_TK, -1);
  if (routing.renormalise) gate_TK = gate_TK / (gate_TK.sum(-1, true) + routing.renormalise_epsilon);
  return routing.routed_scaling == 1.0 ? gate_TK : gate_TK * routing.routed_scaling;
}

Routed route(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E, const families::Routing& routing,
             int64_t top_k) {
  COPPICE_CHECK(logits_TE.dim() == 2 && logits_TE.scalar_type() == at::kFloat && top_k <= logits_TE.size(1));
  COPPICE_CHECK(routing.kind == families::RouterKind::kPlain && routing.trailing_choices == 0);
  COPPICE_CHECK(logits_TE.size(1) % routing.num_groups == 0 && routing.top_groups <= routing.num_groups);
  Routed out;
  out.logits_TE = logits_TE;
  out.score_TE = routing.gate == GateFunction::kSigmoidTopK ? at::sigmoid(logits_TE) : at::softmax(logits_TE, -1);
  const bool by_logits = routing.gate == GateFunction::kTopKSoftmax;
  out.choice_TE = (by_logits ? logits_TE : out.score_TE).detach();
  if (selection_bias_E.defined()) out.choice_TE = out.choice_TE + selection_bias_E;
  out.index_TK = detail::choose(out.choice_TE, routing, top_k);
  out.gate_TK = detail::gates(by_logits ? logits_TE : out.score_TE, out.index_TK, routing);
  return out;
}

at::Tensor balancing_distribution(const Routed& routed, GateFunction gate, BalanceForm form) {
  if (gate != GateFunction::kSigmoidTopK) return routed.score_TE;
  if (form == BalanceForm::kTransformers) return at::softmax(routed.logits_TE, -1);
  return routed.score_TE / routed.score_TE.sum(-1, true);
}

at::Tensor balancing_loss(std::span<const LayerBalance> layers, int64_t num_tokens, int64_t top_k, BalanceForm form) {
  COPPICE_CHECK(!layers.empty());
  const auto mean = [&](const at::Tensor& sum) { return sum / static_cast<double>(layers.size()); };
  at::Tensor loss, all_shares_N, all_scores_N;
  for (const auto& [score_sum_N, count_N] : layers) {
    COPPICE_CHECK(score_sum_N.sizes() == count_N.sizes());
    const auto tokens = static_cast<double>(num_tokens);
    // On the device, which the host does not wait for. NaN passes: the loss will show it.
    const auto excess = (score_sum_N.detach().sum() - tokens).abs();
    at_border([&] {
      at::_assert_async(excess.gt(kSumTolerance * tokens).logical_not(),
                        cat("the probabilities of ", num_tokens, " tokens do not sum to their number"));
    });
    const auto choices = count_N.sum().to(at::kDouble);
    const auto factor = at::full_like(choices, static_cast<double>(top_k)).div_(choices).to(score_sum_N.scalar_type());
    const auto share_N = count_N.to(score_sum_N.scalar_type()) * factor;
    const auto score_N = score_sum_N / tokens;
    if (form == BalanceForm::kPerLayer) {
      const auto of_layer = (share_N * score_N).sum() * static_cast<double>(count_N.numel());
      loss = loss.defined() ? loss + of_layer : of_layer;
    } else {
      all_shares_N = all_shares_N.defined() ? all_shares_N + share_N : share_N;
      all_scores_N = all_scores_N.defined() ? all_scores_N + score_N : score_N;
    }
  }
  if (form == BalanceForm::kPerLayer) return mean(loss);
  return (mean(all_shares_N) * mean(all_scores_N)).sum() * static_cast<double>(all_shares_N.numel());
}

at::Tensor z_loss(const at::Tensor& logits_TE) { return at::logsumexp(logits_TE, -1).square().mean(); }

}  // namespace coppice::nn
