#pragma once

#include <optional>
#include <string>

#include "coppice/base/json.h"
#include "coppice/cost/memory.h"
#include "coppice/cost/options.h"

namespace coppice::cost {

/// The costs of converting a dense model to a Mixture of Experts, and whether it pays for a given budget. The
/// literature disagrees, so both bounds are given.
struct DenseEstimate {
  std::string family;
  int64_t experts = 0, top_k = 0, granularity = 0;
  ModelSize before, after;
  Parallelism parallelism;
  DeviceMemory memory_before, memory_after;
  double all_to_all = 0;                ///< bytes per token, afterwards
  std::optional<double> tokens_ratio;   ///< MoE tokens divided by dense tokens
  std::optional<double> compute_ratio;  ///< the same in FLOPs: tokens times active parameters
  std::string verdict;

  Json to_json() const;
  std::string to_text() const;
};

/// Shares of the dense budget at which training from scratch has caught up: 25 % of the tokens (OLMoE), 120 % of the
/// FLOPs (Sparse Upcycling). From 200 % of the FLOPs on, Skywork-MoE recommends training from scratch.
///
/// Source   arXiv:2409.02060, arXiv:2212.05055, arXiv:2406.06563.
inline constexpr double kOlmoeBound = 0.25, kSparseUpcyclingBound = 1.2, kScratchBound = 2;

/// Throws   Error{kUsage}: more experts per token than there are, experts that are not a multiple of the granularity.
DenseEstimate estimate_dense_cost(const families::Model& model, const CostOptions& options);

}  // namespace coppice::cost
