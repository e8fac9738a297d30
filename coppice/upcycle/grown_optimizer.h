#pragma once

#include <vector>

#include "coppice/families/match.h"
#include "coppice/families/optimizer_state.h"
#include "coppice/upcycle/output_tensors.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

/// Every tensor of the grown optimizer state. `slots` are the grown model's; all arguments outlive the result.
///
/// Memory   of computed pieces: detail::child_piece, or some fp32 copies of a matrix.
std::vector<OutputTensor> grown_optimizer(const families::Model& model, const families::OptimizerState& state,
                                          const GrowthPlan& plan, const std::vector<families::TensorSlot>& slots);

}  // namespace coppice::upcycle
