#pragma once

#include <string>

#include "coppice/cost/estimate.h"

namespace coppice::cost::detail {

/// A remark on a short CPT, from the literature if the curve `is_published`; empty if there is none.
std::string remark_on_share(double cpt_share, double eta, bool is_published);

/// Fills `when` and `does_not_pay`, and the constants that they use.
void advise(CostEstimate& estimate, double target_closure);

}  // namespace coppice::cost::detail
