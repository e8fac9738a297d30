#pragma once

// By what the experts of a converted model are multiplied.

#include <string_view>

#include "coppice/upcycle/convert_plan.h"

namespace coppice::upcycle {

/// The scale a of `function_scale`, spread over the matrices as `mode` says. `calibrate`: a is divided by
/// `calibration_factor`.
///
/// Throws   Error{kUsage}: no such mode, or a calibration without effect.
ExpertScale expert_scale(const ConversionPlan& plan, std::string_view mode, bool calibrate, int64_t model_dim);

}  // namespace coppice::upcycle
