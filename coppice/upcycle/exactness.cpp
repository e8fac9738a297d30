// Whether a grown model still computes its function under plain top-K; the argument of each class is in methods.md
// section 5.

#include "coppice/base/text.h"
#include "coppice/upcycle/expert_init.h"
#include "coppice/upcycle/plan.h"
#include "coppice/upcycle/plan_detail.h"
#include "coppice/upcycle/router_init.h"

namespace coppice::upcycle {
namespace {

using families::GateFunction;

bool groups_limit_choice(const families::Routing& routing) {
  return routing.num_groups > 1 && routing.top_groups < routing.num_groups;
}

/// Children's router rows and biases equal their parents'.
bool routes_like_parents(const GrowthPlan& plan) {
  return router_init(plan.router_init.name).only_copies() && plan.balance_bias == kBalanceBiasCopy;
}

}  // namespace

Exactness exactness(const families::ModelConfig& config, const GrowthPlan& plan) {
  const families::Routing& routing = config.routing;
  if (!expert_init(plan.expert_init.name).same_function) {
    return {false, cat("Not exact: ", plan.expert_init.to_text(),
                       " gives the new experts other weights, so they compute something else than their parents.")};
  }
  if (config.top_k > 1) {
    return {false, cat("Not exact: with top-", config.top_k,
                       " routing the siblings of one parent score alike and take each other's slots, where before ",
                       config.top_k, " different experts answered.")};
  }
  if (!routes_like_parents(plan)) {
    return {false, cat("Not exact: ", plan.router_init.to_text(), " with balance bias '", plan.balance_bias,
                       "' moves the scores of new experts off their parents', so tokens near a tie change experts.")};
  }
  if (routing.gate == GateFunction::kSoftmaxTopK && !routing.renormalise) {
    return {false,
            "Not exact: softmax over more experts without renormalisation divides a token's gate among all siblings."};
  }
  if (routing.gate == GateFunction::kSoftmaxTopK && routing.has_selection_bias) {
    return {false,
            "Not exact: softmax over more experts shrinks the probabilities that the selection bias is added to, so "
            "other experts may be chosen."};
  }
  if (groups_limit_choice(routing)) {
    return {false,
            "Not exact: a router group is scored by its two best experts, which may now be siblings, so other groups "
            "may be chosen."};
  }
  return {true, "Exact up to rounding: top-1 routing picks a sibling with its parent's score, gate and function."};
}

}  // namespace coppice::upcycle
