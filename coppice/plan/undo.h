#pragma once

#include <optional>

#include "coppice/families/match.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// The plan that takes the newest expansion of `lineage` back: of each parent's children the original alone, in the order
/// before.
///
/// Throws   Error{kUsage}: no expansion to undo, or a split, whose parts are not originals; Error{kFormat}: a lineage of
///          another model.
GrowthPlan undo_plan(const families::ModelConfig& config, const std::optional<Json>& lineage);

/// What is and what is not as before the expansion, for people: by the lineage of `grown`, by what the plan multiplies, and
/// by the digest of the model that was written, `undone`, beside that of the model before.
std::string undo_account(const families::Model& grown, const GrowthPlan& plan, const Json& lineage,
                         const families::Model& undone);

}  // namespace coppice::plan
