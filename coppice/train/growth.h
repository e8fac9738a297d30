#pragma once

#include "coppice/nn/decoder.h"
#include "coppice/plan/plan.h"
#include "coppice/step/optimizer.h"

namespace coppice::train {

/// Expands a model in training by `plan`, with its optimizer state and selection biases. The bytes equal those that
/// `coppice expand` makes from its checkpoint.
///
/// Memory   the expanded model and its optimizer state, in addition to those before.
/// Throws   Error{kInternal} if the plan starts from another number of experts.
void grow(nn::Decoder& model, step::Optimizer& optimizer, const plan::GrowthPlan& plan);

}  // namespace coppice::train
