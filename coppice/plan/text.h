#pragma once

#include <string>

#include "coppice/plan/plan.h"

namespace coppice::plan {

/// How often each expert is copied, as text: one line for consecutive layers with the same plan, such as "layers 1-4: 1
/// copy of each of 0-5, 7; 2 copies of 6".
std::string copies_text(const GrowthPlan& plan);

/// The methods of `plan` on one line.
std::string methods_text(const GrowthPlan& plan);

/// The plan as a file that `GrowthPlan::read` takes.
std::string plan_toml(const GrowthPlan& plan);

}  // namespace coppice::plan
