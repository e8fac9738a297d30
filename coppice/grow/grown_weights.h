#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// The name, in the model before, of the tensor that `slot` of the expanded model comes from.
std::string source_name(const plan::GrowthPlan& plan, const families::TensorSlot& slot);

/// Adds those of the model's layers with experts that the plan does not cover, those past num_layers (MTP layers,
/// decoder layers of encoder-decoders). They use the parents of the plan's last layer, because no scores exist for them.
plan::GrowthPlan with_all_layers(std::span<const int64_t> layers_with_experts, int64_t num_layers,
                                 plan::GrowthPlan plan);
plan::GrowthPlan with_all_layers(const families::Model& model, plan::GrowthPlan plan);

/// The tensors of the expanded model, with the same rules and in the same order as in the model before.
std::vector<families::TensorSlot> grown_slots(const families::Model& model, const plan::GrowthPlan& plan);

/// Only the routers' rows and biases of those.
std::vector<families::TensorSlot> grown_router_slots(const families::Model& model, const plan::GrowthPlan& plan);

/// The expert of `slot`, by the plan.
const methods::Child& child_of(const plan::GrowthPlan& plan, const families::TensorSlot& slot);

/// Throws   Error{kUnsupported} if the plan's method changes values and the experts are stored in a format that cannot
///          be computed on (fp8, mxfp4), naming a tensor.
void check_values(const families::Model& model, const plan::GrowthPlan& plan);

/// Every tensor of the expanded model, with the source of its bytes; a stacked tensor has one piece per expert. With
/// `state`, children and routers are computed from the fp32 master weights and then rounded. All arguments must outlive
/// the result.
///
/// Memory   for computed pieces: that of detail::child_piece.
/// Throws   what `check_values` throws.
std::vector<output::OutputTensor> grown_weights(const families::Model& model, const plan::GrowthPlan& plan,
                                                const std::vector<families::TensorSlot>& slots,
                                                const models::OptimizerState* state);

}  // namespace coppice::grow
