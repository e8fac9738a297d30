#pragma once

// The precision that stored values lose when the plan's factors multiply them, measured on the values.

#include <string>

#include "coppice/families/match.h"
#include "coppice/grow/grown_layer_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// Describes how far the plan's factor and rounding to the stored dtype shift selection biases against each other, so
/// that other experts may be chosen. Empty if the shift is not larger than fp32 rounding errors.
std::string lost_by_biases(const GrownRows& bias, const methods::LayerPlan& layer, double factor);

/// Describes which values of the layer's experts (down matrices, their biases) lose precision by the plan's factor, and
/// the largest error. Empty if the error is not larger than fp32 rounding errors.
///
/// Memory   a block of one matrix; only matrices whose dtype may lose precision are read.
std::string lost_by_experts(const families::Model& model, const plan::GrowthPlan& plan, int64_t layer);

}  // namespace coppice::grow::detail
