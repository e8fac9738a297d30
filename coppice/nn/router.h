#pragma once

// T tokens, E experts, K choices.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "coppice/families/model_config.h"

namespace coppice::nn {

struct Routed {
  at::Tensor index_TK;   ///< int64, by falling choice score; ties to the lower expert
  at::Tensor gate_TK;    ///< f32, final gates, routed scaling included; differentiable
  at::Tensor score_TE;   ///< f32, softmax or sigmoid of the logits over all experts; differentiable
  at::Tensor logits_TE;  ///< f32, what the z-loss is over; differentiable
  at::Tensor choice_TE;  ///< f32, what the choice is made by, selection bias included; without gradient
};

/// Chooses K experts for each token, as the family does (families.md section 3).
///
/// Shapes   logits_TE f32; selection_bias_E f32 or undefined.
Routed route(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E, const families::Routing& routing,
             int64_t top_k);

/// Switch-style balancing loss over this micro-batch: E * sum_e f_e * P_e, f = share of (token, slot) pairs times K as
/// in transformers, P = mean score.
///
/// Source   Fedus et al., arXiv:2101.03961; transformers' load_balancing_loss_func (same number for one layer).
at::Tensor balancing_loss(const Routed& routed, int64_t num_experts);

/// The same from sums over `num_rows` rows of scores, such as all tokens of all layers (transformers concatenates the
/// layers).
///
/// Shapes   score_sum_E f32, differentiable; count_E int64.
at::Tensor balancing_loss(const at::Tensor& score_sum_E, const at::Tensor& count_E, int64_t num_rows);

/// Mean over tokens of logsumexp(logits)^2. Source: ST-MoE, arXiv:2202.08906.
at::Tensor z_loss(const at::Tensor& logits_TE);

}  // namespace coppice::nn
