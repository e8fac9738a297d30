#pragma once

#include <vector>

#include "coppice/families/match.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// Every tensor of the expanded optimizer state. `slots` are the expanded model's; all arguments must outlive the
/// result.
///
/// Memory   for computed pieces: that of detail::child_piece, or a few fp32 copies of a matrix.
std::vector<output::OutputTensor> grown_optimizer(const families::Model& model, const models::OptimizerState& state,
                                                  const plan::GrowthPlan& plan,
                                                  const std::vector<families::TensorSlot>& slots);

}  // namespace coppice::grow
