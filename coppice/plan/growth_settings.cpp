#include "coppice/plan/growth_settings.h"

#include "coppice/base/check.h"
#include "coppice/plan/recipe.h"
#include "coppice/plan/selection.h"

namespace coppice::plan {

std::optional<std::string> GrowthSettings::rule() const {
  if (select || !recipe) return select;
  return std::string(plan::recipe(*recipe).select);
}

GrowthSettings GrowthSettings::with_recipe(const families::Routing& routing, bool has_optimizer_state) const {
  GrowthSettings out = *this;
  if (!recipe) return out;
  const Recipe& from = plan::recipe(*recipe);
  const bool has_bias = routing.has_router_bias || routing.has_selection_bias;
  const auto set = [](auto& value, std::string_view text) {
    if (!value) value = methods::MethodChoice::from_text(text);
  };
  out.recipe.reset();
  out.select = rule();
  if (selection_rule(*out.select).needs_scores) {
    if (!metric) out.metric = from.metric;
    if (!layer_selection) out.layer_selection = from.layer_selection;
    if (!max_duplicates) out.max_duplicates = from.max_duplicates;
  }
  set(out.expert_init, from.expert_init);
  set(out.router_init, has_bias ? from.router_init : from.router_init_without_bias);
  if (has_optimizer_state) set(out.optimizer_state, from.optimizer_state);
  return out;
}

GrowthOptions GrowthSettings::growth_options() const {
  COPPICE_CHECK(!recipe, "the recipe '", *recipe, "' was not applied");
  GrowthOptions out{.experts = experts.value_or(ExpertCount{}),
                    .select = select,
                    .max_duplicates = max_duplicates,
                    .router_init = router_init,
                    .order = order,
                    .allow_regroup = allow_regroup};
  out.temperature = temperature.value_or(out.temperature);
  out.metric = metric.value_or(out.metric);
  out.layer_selection = layer_selection.value_or(out.layer_selection);
  out.expert_init = expert_init.value_or(out.expert_init);
  out.balance_bias = balance_bias.value_or(out.balance_bias);
  out.optimizer_state = optimizer_state.value_or(out.optimizer_state);
  out.seed = seed.value_or(out.seed);
  return out;
}

}  // namespace coppice::plan
