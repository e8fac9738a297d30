#pragma once

// T tokens, E experts, K choices.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "coppice/families/model_config.h"

namespace coppice::nn {

struct Routed {
  at::Tensor index_TK;   ///< int64, by falling choice score; ties to the lower expert
  at::Tensor gate_TK;    ///< f32, final gates including routed scaling; differentiable
  at::Tensor score_TE;   ///< f32, softmax or sigmoid of the logits; balancing uses `balancing_distribution` instead
  at::Tensor logits_TE;  ///< f32, logits for the z-loss; differentiable
  at::Tensor choice_TE;  ///< f32, scores that experts are chosen by, including the selection bias; without gradient
};

/// Chooses K experts for each token, as the family does (docs/families.md, "Routing classes").
///
/// Shapes   logits_TE f32; selection_bias_E f32 or undefined.
Routed route(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E, const families::Routing& routing,
             int64_t top_k);

/// How the balancing loss combines several MoE layers.
enum class BalanceForm {
  kPerLayer,  ///< the mean of the layers' losses; minimal only if every layer is even
  /// E * sum_e f_e P_e with f and P averaged over tokens and layers before the product, as in transformers; layers that
  /// are uneven in different ways cancel each other.
  kTransformers,
};

/// The distribution over experts of each token that balancing makes even; every row sums to 1.
///
/// For softmax routers the softmax of the logits. For sigmoid routers each score divided by the sum of all
/// (DeepSeek-V3), except in transformers' form, which uses the softmax there too. With scores that do not sum to 1, the
/// balancing loss would be minimal if all of them were 0.
/// Shapes   returns [T, E] f32, differentiable; under lineage-unique routing each child's share of its lineage.
/// Source   DeepSeek-V3, arXiv:2412.19437, equations 17 to 20; transformers' load_balancing_loss_func.
at::Tensor balancing_distribution(const Routed& routed, families::GateFunction gate, BalanceForm form);

/// The inputs of the balancing loss from one MoE layer. N experts, or lineages under lineage-unique routing.
struct LayerBalance {
  at::Tensor score_sum_N;  ///< f32, sum over tokens of `balancing_distribution`; differentiable
  at::Tensor count_N;      ///< int64 or f64, number of times each was chosen, in these tokens and possibly others
};

/// Switch-style balancing loss: N * sum_n f_n * P_n, f = share of the choices times K, P = mean probability over
/// `num_tokens` tokens; K for even loads. f has no gradient.
///
/// Source   Fedus et al., arXiv:2101.03961; K as in transformers' load_balancing_loss_func.
/// Throws   Error{kInternal} if the probabilities of a layer do not sum to `num_tokens`.
at::Tensor balancing_loss(std::span<const LayerBalance> layers, int64_t num_tokens, int64_t top_k, BalanceForm form);

/// Mean over tokens of logsumexp(logits)^2. Source: ST-MoE, arXiv:2202.08906.
at::Tensor z_loss(const at::Tensor& logits_TE);

}  // namespace coppice::nn
