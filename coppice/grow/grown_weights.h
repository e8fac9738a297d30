#pragma once

#include <string>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// Name, in the model before, of the tensor that `slot` of the grown model comes from: its parent's, or its own.
std::string source_name(const plan::GrowthPlan& plan, const families::TensorSlot& slot);

/// `plan` with the layers that have experts and that no plan knows: those past num_layers (multi-token prediction, the
/// decoder behind an encoder). Nothing ranks their experts, so they take the parents of the last layer of the plan.
plan::GrowthPlan with_all_layers(const families::Model& model, plan::GrowthPlan plan);

/// The tensors of the grown model, each with the rule and the place in order that it has in the model before.
std::vector<families::TensorSlot> grown_slots(const families::Model& model, const plan::GrowthPlan& plan);

/// Of those, the routers' rows and biases.
std::vector<families::TensorSlot> grown_router_slots(const families::Model& model, const plan::GrowthPlan& plan);

/// The expert of `slot`, by the plan.
const methods::Child& child_of(const plan::GrowthPlan& plan, const families::TensorSlot& slot);

/// Throws   Error{kUnsupported} if the plan's method changes values and the experts are stored in a format that cannot
///          be computed on (fp8, mxfp4), naming a tensor.
void check_values(const families::Model& model, const plan::GrowthPlan& plan);

/// Every slot of the grown model with where its bytes come from: of a stacked tensor a piece for each expert. With
/// `state`, children and routers are computed from the fp32 master and rounded from the child's. All arguments outlive
/// the result.
///
/// Memory   of computed pieces: detail::child_piece.
/// Throws   what `check_values` throws.
std::vector<output::OutputTensor> grown_weights(const families::Model& model, const plan::GrowthPlan& plan,
                                                const std::vector<families::TensorSlot>& slots,
                                                const models::OptimizerState* state);

}  // namespace coppice::grow
