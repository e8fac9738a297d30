#pragma once

#include <string>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/upcycle/optimizer_state.h"
#include "coppice/upcycle/output_tensors.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

/// Name, in the model before, of the tensor that `slot` of the grown model comes from: its parent's, or its own.
std::string source_name(const families::ModelConfig& before, const GrowthPlan& plan, const families::TensorSlot& slot);

/// The tensors of the grown model, whose configuration is `after`: all but empty ones that the source leaves out.
std::vector<families::TensorSlot> grown_slots(const families::Model& model, const families::ModelConfig& after,
                                              const GrowthPlan& plan);

/// The expert of `slot`, by the plan.
const Child& child_of(const GrowthPlan& plan, const families::TensorSlot& slot);

bool is_router(families::Role role);  ///< kRouter, kRouterBias, kSelectionBias

/// Every slot of the grown model with where its bytes come from. With `state`, children and routers are computed from
/// the fp32 master and rounded from the child's. All arguments outlive the result.
std::vector<OutputTensor> grown_weights(const families::Model& model, const GrowthPlan& plan,
                                        const std::vector<families::TensorSlot>& slots, const OptimizerState* state);

}  // namespace coppice::upcycle
