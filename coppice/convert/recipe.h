#pragma once

#include <span>
#include <string_view>

#include "coppice/convert/plan.h"

namespace coppice::convert {

/// A named set of options of `convert`; options that the user gives override it. Empty: the family's default.
struct Recipe {
  std::string_view name;
  std::string_view routing, scale, expert_init;
  bool init_all;
  std::string_view summary, source;
};
std::span<const Recipe> recipes();
const Recipe& recipe(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::convert
