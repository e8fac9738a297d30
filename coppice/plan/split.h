#pragma once

// Cuts every expert along its intermediate units into narrower ones: the same function and the same work per token,
// with more experts for the router to choose from.

#include "coppice/plan/plan.h"

namespace coppice::plan {

/// The plan that cuts every expert into `options.split` children; router rows are copied, and top-K is multiplied by
/// the same factor.
///
/// Throws   Error{kUsage}: an expert width that is not a multiple, router groups, or methods that are not `copy`.
/// Source   docs/expand.md. Gates that are shares of 1 are divided among the parts, so `down` is multiplied.
GrowthPlan make_split_plan(const families::ModelConfig& config, const GrowthOptions& options);

}  // namespace coppice::plan
