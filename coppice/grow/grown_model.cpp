#include "coppice/grow/grown_model.h"

#include <algorithm>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/grow/grown_optimizer.h"
#include "coppice/grow/grown_weights.h"

namespace coppice::grow {

using plan::GrowthPlan;

GrownModel::GrownModel(const families::Model& model, const GrowthPlan& given)
    : plan(with_all_layers(model, given)),
      config(plan.experts_after == plan.experts_before ? model.config.json : plan::grown_config(model.config, plan)),
      slots(grown_slots(model, plan)),
      state(models::OptimizerState::open(model)),
      weights(grown_weights(model, plan, slots, state ? &*state : nullptr)) {
  (void)families::read_config(config, "config.json of the expanded model", model.config.family);
  if (state) optimizer = grown_optimizer(model, *state, plan, slots);
}

GrowthPlan unchanged_plan(const families::Model& model) {
  GrowthPlan plan;
  plan.experts_before = plan.experts_after = model.config.num_experts;
  std::vector<methods::Child> children;
  for (uint32_t expert = 0; expert < model.config.num_experts; ++expert) children.push_back({expert, 0});
  for (const int64_t layer : model.layers_with_experts) plan.layers.push_back({.layer = layer, .children = children});
  return plan;
}

}  // namespace coppice::grow
