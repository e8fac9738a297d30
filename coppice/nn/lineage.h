#pragma once

// Lineage-unique top-K: during a handover at most one child of each parent is chosen for a token. Tokens to which this
// rule applies are called held tokens. T tokens, E experts, L lineages (parents before the expansion), K choices.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/nn/router.h"

namespace coppice::nn {

/// The parents of the experts of every MoE layer. What routing needs of them is put on a device when it is first asked
/// for there, and stays.
class Lineage {
 public:
  /// Parents [E] by MoE layer, numbered 0 to num_lineages - 1. What is wrong with them `route_by_lineage` says.
  Lineage(std::map<int64_t, std::vector<uint32_t>> parents, int64_t num_lineages)
      : parents_(std::move(parents)), num_lineages_(num_lineages) {}

  const std::map<int64_t, std::vector<uint32_t>>& parents() const { return parents_; }
  int64_t num_lineages() const { return num_lineages_; }  ///< L

  struct Layer {
    at::Tensor parent_E;  ///< int64
    at::Tensor child_LR;  ///< int64, the experts of each lineage in rising order, filled up with -1
    at::Tensor log_r_E;   ///< f32, log of the number of experts in each expert's lineage
  };
  /// Threads  any.
  const Layer& on(at::Device device, int64_t layer) const;

  /// Sums over the experts of each lineage.
  ///
  /// Shapes   value_E of any dtype, differentiable; returns [L].
  at::Tensor sums(int64_t layer, const at::Tensor& value_E) const;

 private:
  std::map<int64_t, std::vector<uint32_t>> parents_;
  int64_t num_lineages_ = 0;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<std::string, int64_t>, Layer> layers_;  // by device and layer
};

/// How tokens are routed during a handover.
struct LineageRouting {
  std::shared_ptr<const Lineage> lineage;
  double share = 1;   ///< share of held tokens; the others use plain top-K
  uint64_t seed = 0;  ///< random seed of the choice among equal siblings and of the held tokens
};

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
                        const families::Routing& routing, int64_t top_k, const LineageRouting& routed_by, int64_t layer,
                        uint64_t first_token);

}  // namespace coppice::nn
