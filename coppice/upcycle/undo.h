#pragma once

#include <optional>

#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

/// The plan that takes the newest expansion of `lineage` back: of each parent's children the original alone, in the order
/// before. What the expansion left alone is then what it was, byte for byte.
///
/// Throws   Error{kUsage}: no expansion to undo, or a split, whose parts are no originals; Error{kFormat}: a lineage of
///          another model.
GrowthPlan undo_plan(const families::ModelConfig& config, const std::optional<Json>& lineage);

/// One sentence for each thing that the expansion had changed about the originals and that is not taken back; empty if
/// the model is then what it was.
std::string undo_remainder(const Json& lineage);

}  // namespace coppice::upcycle
