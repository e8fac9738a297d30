// Whether a grown model still computes its function under plain top-K; the argument of each class is in methods.md
// section 5.

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/routing_class.h"
#include "coppice/upcycle/expert_init.h"
#include "coppice/upcycle/plan.h"
#include "coppice/upcycle/plan_detail.h"
#include "coppice/upcycle/router_init.h"

namespace coppice::upcycle {
namespace {

using families::RoutingClass;

bool groups_limit_choice(const families::Routing& routing) {
  return routing.num_groups > 1 && routing.top_groups < routing.num_groups;
}

/// Children's router rows and biases equal their parents'.
bool routes_like_parents(const GrowthPlan& plan) {
  return router_init(plan.router_init.name).only_copies() && plan.balance_bias == kBalanceBiasCopy;
}

/// Every parent has as many children as every other.
bool is_uniform(const GrowthPlan& plan) {
  for (const LayerPlan& layer : plan.layers) {
    for (const uint32_t siblings : layer.siblings(plan.experts_before)) {
      if (int64_t{siblings} * plan.experts_before != plan.experts_after) return false;
    }
  }
  return true;
}

/// What would keep the function of a router that takes several experts.
std::string remedy(const families::ModelConfig& config, const GrowthPlan& plan) {
  const auto& info = families::routing_class_info(families::routing_class(config.routing));
  if (!info.can_scale || !routes_like_parents(plan) || !is_uniform(plan) || config.routing.num_groups > 1) return {};
  const int64_t scaled = config.top_k * (plan.experts_after / plan.experts_before);
  return cat(" With top-", scaled, info.scaled.empty() ? "" : cat(", and ", info.scaled, ","),
             " it would be exact, at the cost of as many more active experts.");
}

/// Copies that are never chosen: their bias is lowered below what the originals' can be.
///
/// Source   families.md section 3 (recipe B).
bool copies_are_dormant(const families::ModelConfig& config, const GrowthPlan& plan) {
  constexpr double kBelowLogits = 1e4, kBelowSelectionBiases = 100;
  const families::Routing& routing = config.routing;
  if (families::routing_class_info(families::routing_class(routing)).dormant.empty()) return false;
  if (plan.router_init.name != "bias_only" || !(routing.has_router_bias || routing.has_selection_bias)) return false;
  const Params params("bias_only", router_init("bias_only").params, plan.router_init.given);
  const double wanted = routing.has_router_bias ? kBelowLogits : kBelowSelectionBiases;
  if (params.get("shift") > -wanted || params.get("noise_to_original") != 0) return false;
  // a group that had one expert is scored by its two best ones, of which one is a copy now
  return !groups_limit_choice(routing) || config.num_experts >= 2 * routing.num_groups;
}

}  // namespace

void check_can_scale(const families::ModelConfig& config, std::string_view setting) {
  const auto& info = families::routing_class_info(families::routing_class(config.routing));
  if (info.can_scale) return;
  throw Error(ErrorCode::kUsage, cat(setting, ": more experts a token would change what ", config.family->model_type,
                                     " computes, by its router: ", info.routing, " (leave it out)"));
}

Exactness exactness(const families::ModelConfig& config, const GrowthPlan& plan) {
  const families::Routing& routing = config.routing;
  const RoutingClass routing_class = families::routing_class(routing);
  if (copies_are_dormant(config, plan)) {
    return {
        true,
        "Exact: no token is routed to a new expert, whose bias is far below the others', until training raises it."};
  }
  if (!expert_init(plan.expert_init.name).same_function) {
    return {false, cat("Not exact: ", plan.expert_init.to_text(),
                       " gives the new experts other weights, so they compute something else than their parents.")};
  }
  if (routing_class == RoutingClass::kSparseMixer) {
    return {false,
            "Not exact: the router always takes two experts, and a copy of the first is the nearest to it; no key of "
            "the configuration changes that."};
  }
  if (routing_class == RoutingClass::kCapacity) {
    return {false, cat("Not exact: the router always takes ", config.top_k == 1 ? "one expert" : "two experts",
                       " by a softmax that divides among copies, and each expert turns tokens away past its capacity; "
                       "no key of the configuration changes the former.")};
  }
  if (routing_class == RoutingClass::kTrailingChoices) {
    return {false,
            "Not exact: the router's choices that are no experts keep one place each in the softmax, where every "
            "expert now has several."};
  }
  if (config.top_k > 1) {
    return {false, cat("Not exact: with top-", config.top_k,
                       " routing the siblings of one parent score alike and take each other's slots, where before ",
                       config.top_k, " different experts answered.", remedy(config, plan))};
  }
  if (!routes_like_parents(plan)) {
    return {false, cat("Not exact: ", plan.router_init.to_text(), " with balance bias '", plan.balance_bias,
                       "' moves the scores of new experts off their parents', so tokens near a tie change experts.")};
  }
  if (routing_class == RoutingClass::kSoftmax) {
    return {false,
            "Not exact: softmax over more experts without renormalisation divides a token's gate among all siblings."};
  }
  if (routing_class == RoutingClass::kSoftmaxBiased) {
    return {false,
            "Not exact: softmax over more experts shrinks the probabilities that the selection bias is added to, so "
            "other experts may be chosen."};
  }
  if (groups_limit_choice(routing) && routing.group_score == families::GroupScore::kBestTwo) {
    return {false,
            "Not exact: a router group is scored by its two best experts, which may now be siblings, so other groups "
            "may be chosen."};
  }
  return {true, "Exact up to rounding: top-1 routing picks a sibling with its parent's score, gate and function."};
}

}  // namespace coppice::upcycle
