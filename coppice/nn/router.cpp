#include "coppice/nn/router.h"

#include <ATen/ops/_assert_async.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/kernels/routing.h"
#include "coppice/nn/border.h"
#include "coppice/nn/router_detail.h"

namespace coppice::nn {
namespace {

using families::GateFunction;

constexpr double kSumTolerance = 1e-3;  // relative tolerance of f32 sums over the tokens of a batch

}  // namespace

at::Tensor detail::choose(const at::Tensor& choice_TN, const families::Routing& routing, int64_t top_k) {
  return kernels::choose_top_k(choice_TN, {.top_k = top_k,
                                           .num_groups = routing.num_groups,
                                           .top_groups = routing.top_groups,
                                           .best_two = routing.group_score == families::GroupScore::kBestTwo});
}

at::Tensor detail::gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const families::Routing& routing) {
  return kernels::gates(value_TE, index_TK,
                        {.softmax = routing.gate == GateFunction::kTopKSoftmax,
                         .renormalise = routing.renormalise,
                         .epsilon = routing.renormalise_epsilon,
                         .scaling = routing.routed_scaling});
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
