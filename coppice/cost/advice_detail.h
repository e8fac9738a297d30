#pragma once

#include <string>

#include "coppice/cost/cost_plan.h"

namespace coppice::cost::detail {

/// What the literature says of so short a CPT; empty where nothing.
std::string remark_on_share(double cpt_share);

/// Fills `when` and `does_not_pay`, and the constants that they rest on.
void advise(CostPlan& plan, double target_closure);

}  // namespace coppice::cost::detail
