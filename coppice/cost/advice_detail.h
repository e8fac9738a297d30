#pragma once

#include <string>

#include "coppice/cost/cost_plan.h"

namespace coppice::cost::detail {

/// What is to be said of so short a CPT, in the literature's words where the curve `is_published`; empty where nothing.
std::string remark_on_share(double cpt_share, double eta, bool is_published);

/// Fills `when` and `does_not_pay`, and the constants that they rest on.
void advise(CostPlan& plan, double target_closure);

}  // namespace coppice::cost::detail
