#pragma once

#include <optional>
#include <string>

#include "coppice/base/json.h"
#include "coppice/cost/memory.h"
#include "coppice/cost/plan_options.h"

namespace coppice::cost {

/// What making a mixture of a dense model would cost, and whether the budget is one for which it pays. The literature
/// disagrees on that, so both bounds stand here.
struct DensePlan {
  std::string family;
  int64_t experts = 0, top_k = 0, granularity = 0;
  ModelSize before, after;
  Parallelism parallelism;
  DeviceMemory memory_before, memory_after;
  double all_to_all = 0;                ///< bytes per token, afterwards
  std::optional<double> tokens_ratio;   ///< MoE tokens over dense tokens
  std::optional<double> compute_ratio;  ///< the same in FLOPs: times active parameters
  std::string verdict;

  Json to_json() const;
  std::string to_text() const;
};

/// From scratch has caught up at these shares of the dense budget: OLMoE's 25 % (tokens), Komatsuzaki's 120 % (FLOPs);
/// from 200 % on (FLOPs) Skywork-MoE trains from scratch.
///
/// Source   arXiv:2409.02060, arXiv:2212.05055, arXiv:2406.06563.
inline constexpr double kOlmoeBound = 0.25, kSparseUpcyclingBound = 1.2, kScratchBound = 2;

/// Throws   Error{kUsage}: more experts per token than there are, experts that are not a multiple of the granularity.
DensePlan make_dense_plan(const families::Model& model, const PlanOptions& options);

}  // namespace coppice::cost
