// Checks whether a plan fits a model, wherever the plan comes from.

#include <algorithm>
#include <span>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/routing_class.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {
namespace {

using families::ModelConfig;
using methods::LayerPlan;

/// " of layer 3" if the method is set for that layer only.
std::string whose(const LayerPlan* layer) { return layer == nullptr ? "" : cat(" of layer ", layer->layer); }

void check_expert_method(const GrowthPlan& plan, const methods::MethodChoice& choice, const LayerPlan* layer) {
  if (!methods::expert_init(choice.name).needs_partner || plan.experts_before > 1) return;
  throw Error(ErrorCode::kUsage,
              cat("expert-init", whose(layer), ": '", choice.name,
                  "' mixes with another expert, but the model has only 1 expert (choose another method)"));
}

void check_router_method(const ModelConfig& config, const GrowthPlan& plan, const methods::MethodChoice& choice,
                         const LayerPlan* layer) {
  const methods::RouterInit& chosen = methods::router_init(choice.name);
  const bool unbounded =
      config.routing.bias_on_logits || config.routing.gate == families::GateFunction::kSqrtSoftplusTopK;
  if (choice.name == "dormant" && unbounded && !config.routing.has_router_bias) {
    throw Error(ErrorCode::kUsage,
                cat("router-init", whose(layer), ": '", choice.name, "' needs scores with a bound, but ",
                    config.family->model_type, " adds its selection bias to ",
                    config.routing.bias_on_logits ? "logits" : "square roots of softplus",
                    ", which have none (choose another method)"));
  }
  if (chosen.needs_partner && plan.experts_before == 1) {
    throw Error(ErrorCode::kUsage,
                cat("router-init", whose(layer), ": '", chosen.name,
                    "' mixes with another expert's row, but the model has only 1 expert (choose another "
                    "method)"));
  }
  if (!chosen.needs_bias || config.routing.has_router_bias || config.routing.has_selection_bias) return;
  std::vector<std::string> others;
  for (const methods::RouterInit& method : methods::router_inits()) {
    if (!method.needs_bias) others.emplace_back(method.name);
  }
  throw Error(ErrorCode::kUsage,
              cat("router-init", whose(layer), ": '", chosen.name, "' requires a router bias or a selection bias, but ",
                  config.family->model_type, " has neither; choose one of ", join(others)));
}

bool puts_selection_biases_to_sleep(const ModelConfig& config, const GrowthPlan& plan) {
  return !config.routing.has_router_bias && std::ranges::any_of(plan.layers, [&plan](const LayerPlan& layer) {
    return plan.router_init_of(layer.layer).name == "dormant";
  });
}

void check_layers(const ModelConfig& config, const GrowthPlan& plan) {
  std::vector<std::string> missing, extra;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool planned = std::ranges::binary_search(plan.layers, layer, {}, &LayerPlan::layer);
    if (config.moe_layer[static_cast<size_t>(layer)] && !planned) missing.push_back(cat(layer));
  }
  for (const LayerPlan& layer : plan.layers) {
    if (layer.layer >= config.num_layers || !config.moe_layer[static_cast<size_t>(layer.layer)]) {
      extra.push_back(cat(layer.layer));
    }
  }
  constexpr size_t kListed = 20;
  std::vector<std::string> problems;
  if (!missing.empty()) problems.push_back(cat("no parents for layer ", join_some(missing, kListed)));
  if (!extra.empty()) problems.push_back(cat("the model has no experts in layer ", join_some(extra, kListed)));
  if (problems.empty()) return;
  throw Error(ErrorCode::kUsage,
              cat("the plan does not fit the model: ", join(problems, "; "), " (make one with expand --dry-run)"));
}

/// Checks that the plan has the structure that its top-K and split factors require: every expert has the same number of
/// children.
void check_factors(const ModelConfig& config, const GrowthPlan& plan) {
  const int64_t factor = plan.top_k_factor;
  if (plan.split > 1 && (plan.split != factor || config.expert_width % plan.split != 0)) {
    throw Error(
        ErrorCode::kUsage,
        cat("split: ", plan.split, " with a top-k factor of ", factor, " and experts of ", config.expert_width,
            " units; wanted equal factors that divide the number of units (make the plan with expand --dry-run)"));
  }
  const bool copies = plan.expert_init.name == "copy" && plan.router_init.name == "copy" &&
                      plan.optimizer_state.name == "copy" && plan.balance_bias == kBalanceBiasCopy;
  const bool own_methods =
      std::ranges::any_of(plan.layers, [](const LayerPlan& layer) { return layer.expert_init || layer.router_init; });
  if (plan.split > 1 && (!copies || own_methods)) {
    throw Error(ErrorCode::kUsage, "split: parts are slices of their parents; wanted 'copy' for every method");
  }
  check_factors_follow(config, plan);
  if (factor == 1 || plan.is_undo) return;
  check_can_scale(config, plan.split > 1 ? "split" : "top-k");
  for (const LayerPlan& layer : plan.layers) {
    const auto siblings = layer.siblings(plan.experts_before);
    const auto uneven = std::ranges::find_if(siblings, [factor](uint32_t n) { return std::cmp_not_equal(n, factor); });
    if (uneven == siblings.end()) continue;
    throw Error(ErrorCode::kUsage, cat("layer ", layer.layer, ", expert ", uneven - siblings.begin(), ": it has ",
                                       *uneven, " children and top-K is multiplied by ", factor,
                                       "; wanted that number of children for every expert"));
  }
}

void check_groups(const ModelConfig& config, const GrowthPlan& plan) {
  const int64_t groups = config.routing.num_groups;
  const int64_t size_before = plan.experts_before / groups;
  const int64_t size_after = plan.top_k_factor > 1 ? size_before : plan.experts_after / groups;
  for (const LayerPlan& layer : plan.layers) {
    for (size_t i = 0; i < layer.children.size(); ++i) {
      const int64_t parent = layer.children[i].parent;
      const int64_t from = parent / size_before, to = static_cast<int64_t>(i) / size_after % groups;
      if (from == to) continue;
      throw Error(ErrorCode::kUsage, cat("layer ", layer.layer, ", expert ", i, ": its parent ", parent,
                                         " is in router group ", from, ", but its own position is in group ", to,
                                         " (keep children in their parent's group, or pass --allow-regroup)"));
    }
  }
}

/// Checks that original experts keep their numbers where a table of the model names them.
void check_table(const ModelConfig& config, const GrowthPlan& plan) {
  if (!config.routing.has_expert_table || plan.is_undo) return;
  for (const LayerPlan& layer : plan.layers) {
    for (size_t i = 0; std::cmp_less(i, plan.experts_before); ++i) {
      if (std::cmp_equal(layer.children[i].parent, i) && layer.children[i].copy == 0) continue;
      throw Error(ErrorCode::kUsage,
                  cat("order: layer ", layer.layer, " has expert ", i, " in another place, but a table of ",
                      config.family->model_type, " names experts by their numbers (choose order append)"));
    }
  }
}

}  // namespace

void check_can_scale(const ModelConfig& config, std::string_view setting) {
  const families::Routing& routing = config.routing;
  if (setting == "split" && config.family->normalises_experts) {
    throw Error(ErrorCode::kUsage, cat(setting, ": ", config.family->model_type,
                                       " normalises the output of each expert, and parts would be normalised one by "
                                       "one (leave it out)"));
  }
  if (config.top_k == 1 && !config.family->renormalises_top_1) {
    throw Error(ErrorCode::kUsage, cat(setting, ": ", config.family->model_type,
                                       " divides gates by their sum only if there are two or more (leave it out)"));
  }
  if (routing.has_expert_table) {
    throw Error(ErrorCode::kUsage, cat(setting, ": a table of ", config.family->model_type,
                                       " names the experts of each token, and it has as many columns as experts per "
                                       "token (leave it out)"));
  }
  const bool knows_gates = routing.renormalise_known || routing.gate != families::GateFunction::kSigmoidTopK;
  if (routing.gate == families::GateFunction::kUnknown || !knows_gates) {
    throw Error(ErrorCode::kUsage,
                cat(setting, ": the family file of ", config.family->model_type,
                    " does not say how gates are normalised (add `", families::missing_routing_keys(routing), "`)"));
  }
  const auto& info =
      families::routing_class_info(families::routing_class(families::possible_routings(routing).front()));
  if (info.can_scale) return;
  throw Error(ErrorCode::kUsage, cat(setting, ": more experts per token would change what ", config.family->model_type,
                                     " computes, by its router: ", info.routing, " (leave it out)"));
}

void check_plan(const ModelConfig& config, const GrowthPlan& plan, bool allow_regroup) {
  check_methods(plan);
  if (plan.experts_before != config.num_experts) {
    throw Error(ErrorCode::kUsage, cat("the plan starts from ", plan.experts_before, " experts, but the model has ",
                                       config.num_experts, " (make one with expand --dry-run)"));
  }
  check_layers(config, plan);
  check_expert_method(plan, plan.expert_init, nullptr);
  check_router_method(config, plan, plan.router_init, nullptr);
  for (const LayerPlan& layer : plan.layers) {
    if (layer.expert_init) check_expert_method(plan, *layer.expert_init, &layer);
    if (layer.router_init) check_router_method(config, plan, *layer.router_init, &layer);
  }
  if (methods::optimizer_init(plan.optimizer_state.name).needs_next && plan.experts_before == 1) {
    throw Error(ErrorCode::kUsage,
                cat("optimizer-state: '", plan.optimizer_state.name,
                    "' mixes with another expert's, but the model has only 1 expert (choose another)"));
  }
  if (plan.balance_bias == kBalanceBiasZero && !config.routing.has_selection_bias) {
    throw Error(ErrorCode::kUsage, cat("balance-bias: ", config.family->model_type,
                                       " has no selection bias to set to 0 (leave the setting out)"));
  }
  if (plan.balance_bias == kBalanceBiasZero && puts_selection_biases_to_sleep(config, plan)) {
    throw Error(ErrorCode::kUsage,
                "balance-bias: 'zero' has no effect with router-init 'dormant', which sets the selection biases of new "
                "experts (leave the setting out)");
  }
  check_table(config, plan);
  check_factors(config, plan);
  const int64_t groups = config.routing.num_groups;
  if (groups <= 1 || plan.is_undo) return;
  if (plan.experts_after % groups != 0) {
    throw Error(ErrorCode::kUsage, cat("experts: ", plan.experts_after, " cannot be divided into ", groups,
                                       " equal router groups (choose a multiple of ", groups, ")"));
  }
  if (!allow_regroup) check_groups(config, plan);
}

}  // namespace coppice::plan
