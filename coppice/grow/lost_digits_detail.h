#pragma once

// What an expansion's factors cost in the dtypes that tensors are stored in, found from the values themselves.

#include <string>

#include "coppice/families/match.h"
#include "coppice/grow/grown_layer_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// Says by how much the plan's factor moves stored selection biases against each other, as they are rounded to their
/// dtype: other experts may then be chosen. Empty if what is lost is not more than sums in fp32 lose.
std::string lost_by_biases(const GrownRows& bias, const methods::LayerPlan& layer, double factor);

/// Says which values of the layer's experts (down matrices, their biases) are not kept by the plan's factor in their
/// dtype, and the largest error; empty if what is lost is not more than fp32 loses.
///
/// Memory   a block of one matrix; reads the matrices whose dtype may lose digits.
std::string lost_by_experts(const families::Model& model, const plan::GrowthPlan& plan, int64_t layer);

}  // namespace coppice::grow::detail
