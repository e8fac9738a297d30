#pragma once

#include <string>

#include "coppice/families/match.h"
#include "coppice/grow/never_chosen_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// Why different experts may score the same and which of them is chosen may then be another than before; empty if there
/// is no such reason: equal router rows (of an earlier expansion) of experts that are not equal, or biases so large that
/// the scores added to them lose their digits, where the new order of experts does not decide as the old one did.
///
/// Memory   the bytes of tied experts, mapped.
std::string decisive_ties(const families::Model& model, const plan::GrowthPlan& plan, const LayerRouting& layer);

}  // namespace coppice::grow::detail
