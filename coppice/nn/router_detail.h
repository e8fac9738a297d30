#pragma once

// The two halves of routing that plain top-K and lineage-unique top-K share. T tokens, N experts or lineages, K
// choices.

#include "coppice/nn/router.h"

namespace coppice::nn::detail {

/// The K best of every row in falling order of score, ties to the lower index; only from the best groups if there are
/// router groups.
///
/// Shapes   choice_TN f32; returns [T, K] int64.
at::Tensor choose(const at::Tensor& choice_TN, const families::Routing& routing, int64_t top_k);

/// The gates of the chosen experts: their scores are gathered (with a softmax if top-K comes first), renormalised and
/// scaled as in the family.
///
/// Shapes   value_TE: scores, or logits if top-K comes first; index_TK; returns [T, K] f32, differentiable.
at::Tensor gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const families::Routing& routing);

}  // namespace coppice::nn::detail
