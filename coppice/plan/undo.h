#pragma once

#include <optional>

#include "coppice/families/match.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// The plan that undoes the newest expansion of `lineage`: of each parent's children it keeps only the original, in the
/// earlier order.
///
/// Throws   Error{kUsage}: no expansion to undo, or a split, which has no originals; Error{kFormat}: a lineage of
///          another model.
GrowthPlan undo_plan(const families::ModelConfig& config, const std::optional<Json>& lineage);

/// Says what an undo restored and what differs from the model before the expansion: from the lineage of `grown`, the
/// plan's factors, and the digests of the model that was written, `undone`, and of the model before.
std::string undo_text(const families::Model& grown, const GrowthPlan& plan, const Json& lineage,
                      const families::Model& undone);

}  // namespace coppice::plan
