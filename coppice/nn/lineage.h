#pragma once

// Lineage-unique top-K: during a handover at most one child of each parent is chosen for a token. Tokens to which this
// rule applies are called held tokens. T tokens, E experts, L lineages (parents before the expansion), K choices.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/nn/router.h"

namespace coppice::nn {

/// The lineages of experts (children of the same parent), and the share of held tokens.
struct LineageRouting {
  std::map<int64_t, std::vector<uint32_t>> parents;  ///< by MoE layer: the parent of each expert, [E]
  int64_t num_lineages = 0;                          ///< L
  double share = 1;                                  ///< share of held tokens; the others use plain top-K
  uint64_t seed = 0;  ///< random seed of the choice among equal siblings and of the held tokens
};

/// Sums over experts by lineage.
///
/// Shapes   value_E of any dtype, differentiable; returns [L].
at::Tensor by_lineage(const at::Tensor& value_E, const std::vector<uint32_t>& parents, int64_t num_lineages);

/// As `route`, for an expanded model; token t is number `first_token` + t of the run.
///
/// For held tokens, scores are those of the parents: sigmoid(z); exp(z) / sum_j exp(z_j) / r_j; z if top-K comes first.
/// A lineage is ranked by its best child (including selection bias), router groups are groups of lineages, and one
/// child of each of the K best lineages is chosen: the best or, among children that tie with it (same selection bias,
/// logits within 1e-5 * max(1, |z|)), one by a hash of (token, layer, seed). So an expanded model with exact copies
/// computes the function of the model before, whatever the plan. The held tokens are chosen by a hash of (token, seed),
/// the same in every layer. For held tokens score_TE is the parent's score divided by its number of children r, and
/// logits_TE has log r subtracted.
/// Throws   Error{kFormat} if the lineage is not that of this layer; Error{kUnsupported} if router groups do not have
///          whole lineages.
Routed route_by_lineage(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E,
                        const families::Routing& routing, int64_t top_k, const LineageRouting& lineage, int64_t layer,
                        uint64_t first_token);

}  // namespace coppice::nn
