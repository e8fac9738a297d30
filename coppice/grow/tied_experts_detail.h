#pragma once

#include <string>

#include "coppice/families/match.h"
#include "coppice/grow/never_chosen_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// Why ties between different experts may be decided otherwise than before; empty if they cannot. Experts tie if their
/// router rows are equal (from an earlier expansion), or if biases are so large that the scores added to them lose
/// digits. The outcome changes if the new order of experts decides a tie differently.
///
/// Memory   the bytes of tied experts, mapped.
std::string decisive_ties(const families::Model& model, const plan::GrowthPlan& plan, const LayerRouting& layer);

}  // namespace coppice::grow::detail
