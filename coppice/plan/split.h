#pragma once

// Cutting every expert along its intermediate units into narrower ones: the same function and the same work per token,
// with more to choose from.

#include "coppice/plan/plan.h"

namespace coppice::plan {

/// Children of every expert are its `options.split` parts; router rows are copied and top-K grows likewise.
///
/// Throws   Error{kUsage}: an expert width that is not a multiple, router groups, or methods that are not `copy`.
/// Source   methods.md section 3: gates that are shares of 1 are divided among the parts, so `down` is multiplied.
GrowthPlan make_split_plan(const families::ModelConfig& config, const GrowthOptions& options);

}  // namespace coppice::plan
