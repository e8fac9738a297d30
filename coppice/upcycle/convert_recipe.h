#pragma once

#include <span>
#include <string_view>

#include "coppice/upcycle/convert_plan.h"

namespace coppice::upcycle {

/// Settings of `convert` that belong together; what the user sets himself goes before. Empty: the family's own.
struct ConvertRecipe {
  std::string_view name;
  std::string_view routing, scale, expert_init;
  bool init_all;
  std::string_view summary, source;
};
std::span<const ConvertRecipe> convert_recipes();
const ConvertRecipe& convert_recipe(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::upcycle
