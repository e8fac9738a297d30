#pragma once

#include <string>
#include <string_view>

#include "coppice/plan/plan.h"

namespace coppice::plan {

std::string_view order_name(Order order);
Order order_from_name(std::string_view name, std::string_view subject);    // Throws Error{kUsage}
void check_balance_bias(std::string_view name, std::string_view subject);  // Throws Error{kUsage}
/// Throws   Error{kUsage} if no larger top-K keeps the function of the model's router.
void check_can_scale(const families::ModelConfig& config, std::string_view setting);
/// Throws   Error{kUsage} if the plan's factors differ from those that `set_factors` computes.
void check_factors_follow(const families::ModelConfig& config, const GrowthPlan& plan);
void check_methods(const GrowthPlan& plan);  // Throws Error{kUsage}: unknown methods, parameters, values out of range

}  // namespace coppice::plan
