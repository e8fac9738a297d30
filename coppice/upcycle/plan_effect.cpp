// What a plan makes of a model beyond its tensors: the configuration, and whether the function stays.

#include <set>

#include "coppice/base/text.h"
#include "coppice/upcycle/expert_init.h"
#include "coppice/upcycle/plan.h"
#include "coppice/upcycle/plan_detail.h"
#include "coppice/upcycle/router_init.h"

namespace coppice::upcycle {
namespace {

using families::GateFunction;
using families::ModelConfig;

/// Exact copies fill the m * K slots with the m copies of the K experts that answered before.
///
/// Source   methods.md section 5, families.md section 3 (recipe A).
Exactness scaled_top_k_exactness(const ModelConfig& config, const GrowthPlan& plan) {
  const auto& routing = config.routing;
  const int64_t factor = plan.top_k_factor;
  if (!expert_init(plan.expert_init.name).same_function) {
    return {false, cat("Not exact: ", plan.expert_init.to_text(),
                       " gives the new experts other weights, so they compute something else than their parents.")};
  }
  if (!router_init(plan.router_init.name).only_copies() || plan.balance_bias != kBalanceBiasCopy) {
    return {false, cat("Not exact: ", plan.router_init.to_text(), " with balance bias '", plan.balance_bias,
                       "' moves the scores of new experts off their parents', so the ", factor * config.top_k,
                       " slots need not hold all siblings of the experts chosen before (router-init copy is exact).")};
  }
  if (routing.gate == GateFunction::kSigmoidTopK && !routing.renormalise && !config.family->has_routed_scaling) {
    return {false, cat("Not exact: each of ", factor,
                       " siblings answers with the whole gate of its parent, and the family has no routed scaling "
                       "factor to divide by ",
                       factor, ".")};
  }
  return {true, cat("Exact up to rounding and ties of different experts: ", factor, " times as many slots hold all ",
                    factor, " siblings of the ", config.top_k, " experts chosen before, at ", factor,
                    " times the active parameters.")};
}

}  // namespace

Json grown_config(const ModelConfig& config, const GrowthPlan& plan) {
  ModelConfig grown = config;
  grown.json = families::with_num_experts(config, plan.experts_after);
  if (plan.top_k_factor > 1) {
    grown.json = families::with_top_k_factor(
        grown, {.factor = plan.top_k_factor, .copies = plan.split == 1, .back = plan.is_undo});
  }
  if (plan.split > 1) grown.json = families::with_expert_width(grown, config.expert_width / plan.split);
  return grown.json;
}

Exactness plan_exactness(const ModelConfig& config, const GrowthPlan& plan) {
  if (plan.is_undo) {
    return {false, "Not exact: the experts that an expansion added, and what they have learnt, are gone."};
  }
  if (plan.split > 1) {
    return {true, cat("Exact up to rounding and ties of different experts: each expert's ", plan.split,
                      " parts are chosen together and add up to it, at the same work per token.")};
  }
  Exactness result;
  std::set<std::pair<std::string, std::string>> seen;
  for (const LayerPlan& layer : plan.layers) {
    GrowthPlan uniform = plan;
    uniform.expert_init = plan.expert_init_of(layer.layer);
    uniform.router_init = plan.router_init_of(layer.layer);
    if (!seen.emplace(uniform.expert_init.to_text(), uniform.router_init.to_text()).second) continue;
    for (LayerPlan& other : uniform.layers) other.expert_init = other.router_init = std::nullopt;
    result = plan.top_k_factor > 1 ? scaled_top_k_exactness(config, uniform) : exactness(config, uniform);
    if (!result.exact) break;
  }
  return result;
}

}  // namespace coppice::upcycle
