#include "coppice/convert/convert_options.h"

#include <algorithm>
#include <array>

#include "coppice/convert/recipe.h"

namespace coppice::convert {
namespace {

constexpr std::array<std::string_view, 8> kOfEveryRun = {"MODEL",  "OUT",  "max-shard-bytes", "threads",
                                                         "resume", "part", "dry-run",         "json"};

}  // namespace

void check_effects(const ConvertOptions& given) {
  ConvertOptions o = given;  // the table of options holds pointers that can write
  if (o.models.size() == 1 && o.trunk) refuse_option("trunk", "there is only one MODEL");
  if (!o.dense_average && o.no_virtual_group && o.granularity.value_or(1) == 1) {
    refuse_option("no-virtual-group", "with granularity 1 every expert has its own router row anyway");
  }
  if (!o.dense_average) return;
  if (o.models.size() > 1) refuse_option("dense-average", "it averages the experts of one MODEL");
  for (const OptionSpec& spec : option_specs(o)) {
    const bool has_effect = spec.name == "dense-average" || spec.name == "to" || spec.name == "lossy" ||
                            std::ranges::find(kOfEveryRun, spec.name) != kOfEveryRun.end();
    if (!has_effect && output::is_given(spec)) refuse_option(spec.name, "--dense-average makes no experts");
  }
}

ConvertOptions with_recipe(ConvertOptions o) {
  if (!o.recipe) return o;
  const Recipe& recipe = convert::recipe(*o.recipe);
  if (!o.routing && !recipe.routing.empty()) o.routing = recipe.routing;
  if (!o.scale) o.scale = recipe.scale;
  if (o.expert_init) return o;
  o.expert_init = methods::MethodChoice::from_text(recipe.expert_init);
  o.init_all = o.init_all || recipe.init_all;
  return o;
}

ConversionOptions conversion_options(const ConvertOptions& o, const methods::RouterRows* rows) {
  ConversionOptions c{.to = o.to,
                      .experts = o.experts,
                      .top_k = o.top_k,
                      .virtual_groups = !o.no_virtual_group,
                      .routing = o.routing,
                      .calibrate = o.calibrate,
                      .every = o.every,
                      .init_all = o.init_all,
                      .lossy = o.lossy};
  if (!o.layers.empty()) c.layers = o.layers;
  c.granularity = o.granularity.value_or(c.granularity);
  c.scale = o.scale.value_or(c.scale);
  c.shared_width = o.shared_expert.value_or(c.shared_width);
  c.expert_init = o.expert_init.value_or(c.expert_init);
  c.router = o.router.value_or(methods::MethodChoice{rows == nullptr ? "random" : "rows", {}});
  if (rows != nullptr) c.router_digest = rows->digest();
  c.trunk = o.trunk.value_or(c.trunk);
  c.seed = o.seed.value_or(c.seed);
  return c;
}

Json settings_record(ConvertOptions o, const ConversionPlan* given, std::string_view to) {
  o.recipe.reset();  // only a name for settings that are all recorded
  o.to = to;
  if (given != nullptr) {
    const ConversionPlan plan = canonical(*given);
    o.experts = plan.experts;
    o.top_k = plan.top_k;
    o.granularity = plan.granularity;
    o.routing = plan.routing;
    o.scale = o.scale.value_or(ConversionOptions{}.scale);
    o.every.reset();
    o.layers.clear();
    for (const methods::LayerPlan& layer : plan.layers) o.layers.push_back(layer.layer);
    o.shared_expert = plan.shared_width;
    o.expert_init = plan.expert_init;
    o.router = plan.router;
    if (plan.parents > 1) o.trunk = plan.trunk;
    o.seed = plan.seed;
  }
  return output::recorded_settings(option_specs(o), o);
}

}  // namespace coppice::convert
