#pragma once

#include <string>

#include "coppice/convert/plan.h"
#include "coppice/families/match.h"

namespace coppice::convert {

/// Describes which values of the dense model lose precision by the plan's scale, and the largest error. Empty if the
/// error is not larger than fp32 rounding errors.
///
/// Memory   a block of one matrix; only matrices of converted layers whose dtype may lose precision are read.
std::string lost_by_scale(const families::Model& dense, const ConversionPlan& plan);

}  // namespace coppice::convert
