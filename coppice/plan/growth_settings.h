#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "coppice/methods/params.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// The options of an expansion as a command line, a settings file or a [[growth]] table states them. What is not set
/// comes from the recipe, if there is one, else from the defaults of GrowthOptions.
struct GrowthSettings {
  std::optional<ExpertCount> experts;
  std::optional<std::string> recipe, select;
  std::optional<double> temperature;
  std::optional<std::string> metric, layer_selection;
  std::optional<uint64_t> max_duplicates;
  std::optional<methods::MethodChoice> expert_init, router_init;
  std::optional<std::string> balance_bias;
  std::optional<methods::MethodChoice> optimizer_state;
  std::optional<std::string> order;
  bool allow_regroup = false;
  std::optional<uint64_t> seed;

  /// The selection rule that is set, or the recipe's. Throws Error{kUsage}: unknown recipe.
  std::optional<std::string> rule() const;
  /// The same settings with the recipe's values where nothing is set, and without the recipe. Which router method a
  /// recipe means depends on whether the model has a router bias or a selection bias; what a recipe says of scores holds
  /// only for rules that read scores; what it says of Adam's moments only where there are any.
  ///
  /// Throws   Error{kUsage}: unknown recipe or rule, with the nearest name.
  GrowthSettings with_recipe(const families::Routing& routing, bool has_optimizer_state) const;
  /// Without the recipe: call with_recipe first.
  GrowthOptions growth_options() const;
};

}  // namespace coppice::plan
