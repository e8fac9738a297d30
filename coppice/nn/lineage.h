#pragma once

// Lineage-unique top-K: while an expanded model hands over, at most one child of each parent is chosen for a token.
// T tokens, E experts, L lineages (parents before the expansion), K choices.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/nn/router.h"

namespace coppice::nn {

/// Which experts are children of one parent, and how many tokens the rule still holds for.
struct LineageRouting {
  std::map<int64_t, std::vector<uint32_t>> parents;  ///< by MoE layer: the parent of each expert, [E]
  int64_t num_lineages = 0;                          ///< L
  double share = 1;   ///< of the tokens that choose by lineage; the others by plain top-K
  uint64_t seed = 0;  ///< of the choice among equal siblings, and of the tokens
};

/// Sums over experts by lineage.
///
/// Shapes   value_E of any dtype, differentiable; returns [L].
at::Tensor by_lineage(const at::Tensor& value_E, const std::vector<uint32_t>& parents, int64_t num_lineages);

/// As `route`, for an expanded model; token t is number `first_token` + t of the run.
///
/// Where the rule holds, scores are those of the parents: sigmoid(z); exp(z) / sum_j exp(z_j) / r_j; z where top-K comes
/// first. A lineage counts by its best child (selection bias included), groups are groups of lineages, and of each of
/// the K best lineages one child is taken: its best, or, among children that tie with it (same selection bias, logits
/// within 1e-5 * max(1, |z|)), one by a hash of (token, layer, seed). So the expanded model with exact copies computes the
/// function of the model before, whatever the plan.
/// Which tokens it holds for is a hash of (token, seed), the same in every layer. For those score_TE holds each child's
/// part of its lineage (`by_lineage` sums it) and logits_TE is less log r.
/// Throws   Error{kFormat} if the lineage is not that of this layer; Error{kUnsupported} if groups do not hold whole
///          lineages.
Routed route_by_lineage(const at::Tensor& logits_TE, const at::Tensor& selection_bias_E,
                        const families::Routing& routing, int64_t top_k, const LineageRouting& lineage, int64_t layer,
                        uint64_t first_token);

}  // namespace coppice::nn
