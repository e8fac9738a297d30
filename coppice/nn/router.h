#pragma once

// T tokens, E experts, K choices.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "coppice/families/model_config.h"

namespace coppice::nn {

struct Routed {
  at::Tensor index_TK;   ///< int64, by falling choice score; ties to the lower expert
  at::Tensor gate_TK;    ///< f32, final gates, routed scaling included; differentiable
  at::Tensor score_TE;   ///< f32, softmax or sigmoid of the logits; balancing takes `balancing_distribution` instead
  at::Tensor logits_TE;  ///< f32, what the z-loss is over; differentiable
  at::Tensor choice_TE;  ///< f32, what the choice is made by, selection bias included; without gradient
};

/// Chooses K experts for each token, as the family does (docs/families.md, "Routing classes").
///
/// Shapes   logits_TE f32; selection_bias_E f32 or undefined.
Routed route(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E, const families::Routing& routing,
             int64_t top_k);

/// How the balancing loss takes several MoE layers together.
enum class BalanceForm {
  kPerLayer,      ///< the mean of the layers' losses: least only where every layer is even
  kTransformers,  ///< of loads and scores that are averaged over the layers first, as in transformers: layers that are
                  ///< uneven in different ways make up for each other
};

/// What balancing spreads evenly: for each token a distribution over the experts; every row sums to 1.
///
/// The softmax of the logits; of sigmoid routers each score divided by the sum of all (DeepSeek-V3), but for the form
/// of transformers, which takes the softmax there too. The balancing loss is made of this and of nothing else: with
/// scores that do not sum to 1 it would be least where all of them are 0.
/// Shapes   returns [T, E] f32, differentiable; under lineage routing each child's part of its lineage.
/// Source   DeepSeek-V3, arXiv:2412.19437, equations 17 to 20; transformers' load_balancing_loss_func.
at::Tensor balancing_distribution(const Routed& routed, families::GateFunction gate, BalanceForm form);

/// What one MoE layer brings to the balancing loss. N experts, or lineages while lineage routing lasts.
struct LayerBalance {
  at::Tensor score_sum_N;  ///< f32, sum over tokens of `balancing_distribution`; differentiable
  at::Tensor count_N;      ///< int64 or f64, how often each was chosen, in these tokens or in others too
};

/// Switch-style balancing loss: N * sum_n f_n * P_n, f = share of the choices times K, P = mean probability over
/// `num_tokens` tokens; K for even loads. No gradient goes through f.
///
/// Source   Fedus et al., arXiv:2101.03961; K as in transformers' load_balancing_loss_func.
/// Throws   Error{kInternal} if the probabilities of a layer do not sum to `num_tokens`.
at::Tensor balancing_loss(std::span<const LayerBalance> layers, int64_t num_tokens, int64_t top_k, BalanceForm form);

/// Mean over tokens of logsumexp(logits)^2. Source: ST-MoE, arXiv:2202.08906.
at::Tensor z_loss(const at::Tensor& logits_TE);

}  // namespace coppice::nn
