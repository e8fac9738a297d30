#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {
namespace {

using methods::MethodChoice;

MethodChoice complete_expert(const MethodChoice& choice) {
  return complete(choice, methods::expert_init(choice.name).params);
}

MethodChoice complete_router(const MethodChoice& choice) {
  return complete(choice, methods::router_init(choice.name).params);
}

}  // namespace

GrowthPlan canonical(GrowthPlan plan) {
  plan.expert_init = complete_expert(plan.expert_init);
  plan.router_init = complete_router(plan.router_init);
  plan.optimizer_state = complete(plan.optimizer_state, methods::optimizer_init(plan.optimizer_state.name).params);
  for (methods::LayerPlan& layer : plan.layers) {
    if (layer.expert_init) layer.expert_init = complete_expert(*layer.expert_init);
    if (layer.router_init) layer.router_init = complete_router(*layer.router_init);
    if (layer.expert_init == plan.expert_init) layer.expert_init.reset();
    if (layer.router_init == plan.router_init) layer.router_init.reset();
  }
  return plan;
}

}  // namespace coppice::plan
