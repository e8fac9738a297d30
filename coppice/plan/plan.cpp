#include "coppice/plan/plan.h"

#include <algorithm>
#include <span>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/selection.h"
#include "coppice/plan/split.h"
#include "coppice/plan/utility.h"

namespace coppice::plan {
namespace {

using families::ModelConfig;
using methods::MethodChoice;

bool has_bias(const ModelConfig& config) { return config.routing.has_router_bias || config.routing.has_selection_bias; }

void check_model(const ModelConfig& config) {
  if (!config.is_moe()) {
    throw Error(ErrorCode::kUnsupported,
                cat("a ", config.family->model_type,
                    " model has no experts to copy (convert it first with `coppice convert`)"));
  }
  if (config.num_moe_layers() == 0) {
    throw Error(ErrorCode::kUnsupported,
                cat("config.json says ", config.num_experts, " experts, but all of its ", config.num_layers,
                    " layers are dense (correct the key that says which layers are dense)"));
  }
  if (config.num_layers > families::kMaxLayers) {
    throw Error(ErrorCode::kUnsupported,
                cat("the model has ", config.num_layers, " layers; wanted at most ", families::kMaxLayers));
  }
}

void check_scores(const ModelConfig& config, const Scores& scores) {
  std::vector<std::string> differences;
  const auto compare = [&](std::string_view what, const auto& found, const auto& wanted) {
    if (found != wanted) differences.push_back(cat(what, " ", found, ", but the model has ", wanted));
  };
  compare("experts", scores.experts, config.num_experts);
  compare("layers", scores.layers, config.num_layers);
  compare("model_type", scores.model_type, config.family->model_type);
  if (differences.empty()) return;
  throw Error(ErrorCode::kUsage,
              cat("the scores are of another model: ", join(differences, "; "), " (score the model that you expand)"));
}

MethodChoice choose_router_init(const ModelConfig& config, const GrowthOptions& options) {
  if (options.router_init) return *options.router_init;
  return {has_bias(config) ? "bias_only" : "perturb_new_only", {}};
}

/// If router groups are kept, copies are placed beside their parents.
Order choose_order(const ModelConfig& config, const GrowthOptions& options, int64_t num_new) {
  const int64_t groups = config.routing.num_groups;
  const bool keeps_groups = groups > 1 && !options.allow_regroup && !options.scale_top_k;
  const Order order = options.order  ? order_from_name(*options.order, "order")
                      : keeps_groups ? Order::kSiblings
                                     : Order::kAppend;
  if (groups <= 1) return order;
  if (options.scale_top_k && order != Order::kAppend) {
    throw Error(ErrorCode::kUsage, cat("order: 'siblings' would mix the ", groups,
                                       " router groups, whose number is multiplied like top-K (choose append)"));
  }
  if (!keeps_groups) return order;
  if (order == Order::kAppend) {
    throw Error(ErrorCode::kUsage, cat("order: 'append' would move experts out of their ", groups,
                                       " router groups (choose siblings, or pass --allow-regroup)"));
  }
  if (config.num_experts % groups != 0 || num_new % groups != 0) {
    throw Error(ErrorCode::kUsage,
                cat("experts: ", num_new, " new and ", config.num_experts, " old ones cannot be divided into ", groups,
                    " equal router groups (choose a total that is a multiple of ", groups,
                    ", or let experts change groups with --allow-regroup)"));
  }
  return order;
}

/// Throws   Error{kUsage} if top-K cannot be multiplied by the factor of the experts.
void scale_top_k(const ModelConfig& config, const SelectionRule& rule, GrowthPlan& plan) {
  if (plan.experts_after % plan.experts_before != 0) {
    throw Error(ErrorCode::kUsage, cat("top-k: cannot be scaled like the experts, from ", plan.experts_before, " to ",
                                       plan.experts_after, " (choose a multiple of ", plan.experts_before, ")"));
  }
  if (rule.name != "uniform") {
    throw Error(ErrorCode::kUsage, cat("top-k: can be scaled only if every expert has the same number of copies, but '",
                                       rule.name, "' chooses among them (leave select and scores out)"));
  }
  plan.top_k_factor = plan.experts_after / plan.experts_before;
  set_factors(config, plan);
}

/// The number of new copies of each expert of a layer; if there are router groups, chosen inside each group.
std::vector<uint32_t> copies_per_expert(const SelectionRule& rule, const SelectionInput& layer_input, int64_t experts,
                                        int64_t groups) {
  std::vector<uint32_t> copies;
  const int64_t group_experts = experts / groups;
  for (int64_t group = 0; group < groups; ++group) {
    SelectionInput input = layer_input;
    const int64_t first = group * group_experts;
    if (!input.scores.empty()) {
      input.scores = input.scores.subspan(static_cast<size_t>(first), static_cast<size_t>(group_experts));
    }
    input.num_new = layer_input.num_new / groups;
    input.key.parent = static_cast<uint32_t>(first);  // every group has its own random numbers
    const auto counts = select_parents(rule, input, group_experts);
    copies.insert(copies.end(), counts.begin(), counts.end());
  }
  return copies;
}

std::vector<methods::Child> order_children(std::span<const uint32_t> copies, Order order) {
  std::vector<methods::Child> children;
  if (order == Order::kSiblings) {
    for (uint32_t parent = 0; parent < copies.size(); ++parent) {
      for (uint32_t copy = 0; copy <= copies[parent]; ++copy) children.push_back({parent, copy});
    }
    return children;
  }
  const uint32_t most = copies.empty() ? 0 : *std::ranges::max_element(copies);
  for (uint32_t copy = 0; copy <= most; ++copy) {
    for (uint32_t parent = 0; parent < copies.size(); ++parent) {
      if (copy <= copies[parent]) children.push_back({parent, copy});
    }
  }
  return children;
}

}  // namespace

const methods::LayerPlan& GrowthPlan::layer(int64_t index) const {
  const auto found = std::ranges::lower_bound(layers, index, {}, &methods::LayerPlan::layer);
  COPPICE_CHECK(found != layers.end() && found->layer == index, "layer ", index);
  return *found;
}

const MethodChoice& GrowthPlan::expert_init_of(int64_t layer_index) const {
  const auto& own = layer(layer_index).expert_init;
  return own ? *own : expert_init;
}

const MethodChoice& GrowthPlan::router_init_of(int64_t layer_index) const {
  const auto& own = layer(layer_index).router_init;
  return own ? *own : router_init;
}

GrowthPlan make_plan(const ModelConfig& config, const GrowthOptions& options, const Scores* scores) {
  check_model(config);
  if (options.split > 1) return make_split_plan(config, options);
  GrowthPlan plan;
  plan.seed = options.seed;
  plan.experts_before = config.num_experts;
  plan.experts_after = options.experts.resolve(config.num_experts);
  const int64_t num_new = plan.experts_after - plan.experts_before;
  plan.select = options.select.value_or(scores == nullptr ? "uniform" : "waterfill");
  const SelectionRule& rule = selection_rule(plan.select);
  if (rule.needs_scores && scores == nullptr) {
    throw Error(ErrorCode::kUsage,
                cat("select: '", rule.name,
                    "' ranks experts by scores, but there are no scores (give scores, or select uniform)"));
  }
  (void)utility_metric(options.metric);
  (void)layer_selection(options.layer_selection);
  if (scores != nullptr) check_scores(config, *scores);

  plan.order = choose_order(config, options, num_new);
  plan.expert_init = options.expert_init;
  plan.router_init = choose_router_init(config, options);
  plan.optimizer_state = options.optimizer_state;
  plan.balance_bias = options.balance_bias;
  check_balance_bias(plan.balance_bias, "balance-bias");
  check_methods(plan);
  if (options.allow_regroup && config.routing.num_groups <= 1) {
    throw Error(ErrorCode::kUsage,
                "allow-regroup: it has no effect here; the model has no router groups (leave it out)");
  }
  if (options.scale_top_k) scale_top_k(config, rule, plan);

  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.moe_layer[static_cast<size_t>(layer)]) continue;
    std::vector<double> values;
    if (rule.needs_scores) values = layer_scores(*scores, options.metric, options.layer_selection, layer);
    const SelectionInput input{.scores = values,
                               .num_new = num_new,
                               .max_duplicates = options.max_duplicates ? options.max_duplicates : rule.default_cap,
                               .temperature = options.temperature,
                               .key = {.seed = options.seed,
                                       .layer = static_cast<uint32_t>(layer),
                                       .role = static_cast<uint32_t>(families::Role::kRouter)}};
    const int64_t groups = options.allow_regroup ? 1 : config.routing.num_groups;
    const auto copies = copies_per_expert(rule, input, plan.experts_before, groups);
    plan.layers.push_back({.layer = layer, .children = order_children(copies, plan.order)});
  }
  check_plan(config, plan, options.allow_regroup);
  return plan;
}

}  // namespace coppice::plan
