#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace coppice::plan {

/// A named set of options of `expand`; options that the user gives override it.
struct Recipe {
  std::string_view name;
  std::string_view select, metric, layer_selection;
  uint64_t max_duplicates;
  std::string_view expert_init, router_init, optimizer_state;
  std::string_view router_init_without_bias;  ///< for families with neither router bias nor selection bias
  std::string_view summary, source;
};
std::span<const Recipe> recipes();
const Recipe& recipe(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::plan
