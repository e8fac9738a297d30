#pragma once

#include "coppice/nn/decoder.h"
#include "coppice/plan/plan.h"
#include "coppice/step/optimizer.h"

namespace coppice::train {

/// Grows a model in training, its optimizer state and selection biases by `plan`: the same bytes as `coppice expand`
/// makes of its checkpoint.
///
/// Memory   the grown model and its optimizer state beside those before.
/// Throws   Error{kInternal} if the plan is of another number of experts.
void grow(nn::Decoder& model, step::Optimizer& optimizer, const plan::GrowthPlan& plan);

}  // namespace coppice::train
