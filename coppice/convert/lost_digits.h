#pragma once

#include <string>

#include "coppice/convert/plan.h"
#include "coppice/families/match.h"

namespace coppice::convert {

/// Says which values of the dense model the plan's scale does not keep in their dtype, and the largest error; empty if
/// what is lost is not more than fp32 loses.
///
/// Memory   a block of one matrix; reads the matrices of layers that get experts where their dtype may lose digits.
std::string lost_by_scale(const families::Model& dense, const ConversionPlan& plan);

}  // namespace coppice::convert
