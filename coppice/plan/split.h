#pragma once

// Cutting every expert along its intermediate units into narrower ones: the same function and the same work per token,
// with more to choose from.

#include "coppice/matrix/matrix_rows.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// Children of every expert are its `options.split` parts; router rows are copied and top-K grows likewise.
///
/// Throws   Error{kUsage}: an expert width that is no multiple, router groups, or methods that are not `copy`.
/// Source   methods.md section 3: gates that are shares of 1 are divided among the parts, so `down` is multiplied.
GrowthPlan make_split_plan(const families::ModelConfig& config, const GrowthOptions& options);

/// The part of an expert's matrix (or bias) that is `child`, times a factor: some rows of gate and up, columns of down.
matrix::MatrixRows part_of_expert(const GrowthPlan& plan, const methods::Child& child, const matrix::MatrixRows& parent,
                                  double factor);

}  // namespace coppice::plan
