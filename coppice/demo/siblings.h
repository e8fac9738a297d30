#pragma once

#include "coppice/demo/results.h"
#include "coppice/families/match.h"
#include "coppice/plan/plan.h"

namespace coppice::demo {

/// How far the children of one parent have moved apart: fills sibling_cosine and sibling_distance from the weights of
/// `model`, over all pairs of siblings and all three matrices of an expert.
///
/// Memory   the experts of one parent.
void measure_siblings(const families::Model& model, const plan::GrowthPlan& plan, SeedResult& result);

}  // namespace coppice::demo
