#include "coppice/plan/recorded_growth.h"

#include <algorithm>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/methods/children.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/lineage_detail.h"

namespace coppice::plan {
namespace {

using detail::command_of;
using detail::naming;
using detail::refuse_lineage;
using detail::seed_of_step;
using methods::LayerPlan;
using methods::MethodChoice;

/// In older lineages, whose methods are recorded as the user wrote them: all parameters of the methods.
constexpr const char* kParametersKey = "parameters";

/// Reads `name:key=value`, and the parameters recorded beside it if there are any.
MethodChoice read_choice(const Json& methods, std::string_view key, const Json* parameters) {
  MethodChoice choice = MethodChoice::from_text(methods.at(key).as_string());
  const Json* own = parameters != nullptr ? parameters->find(key) : nullptr;
  if (own == nullptr) return choice;
  for (const auto& [name, value] : own->members()) choice.given[name] = value.as_double();
  return choice;
}

void read_layer_methods(const Json& methods, const Json* parameters, std::string_view source,
                        std::vector<LayerPlan>& layers) {
  const Json* own = methods.find("layers");
  if (own == nullptr) return;
  const Json* own_parameters = parameters != nullptr ? parameters->find("layers") : nullptr;
  for (const auto& [key, choices] : own->members()) {
    const int64_t number = methods::layer_from_key(key, cat(source, ": 'layers'"));
    const auto layer = std::ranges::find(layers, number, &LayerPlan::layer);
    if (layer == layers.end()) refuse_lineage(source, cat("layer ", key, " has methods but no parents"), "parents too");
    const Json* of_layer = own_parameters != nullptr ? own_parameters->find(key) : nullptr;
    if (choices.find("expert_init") != nullptr) layer->expert_init = read_choice(choices, "expert_init", of_layer);
    if (choices.find("router_init") != nullptr) layer->router_init = read_choice(choices, "router_init", of_layer);
  }
}

int64_t whole_or_one(const Json& step, std::string_view key, std::string_view source) {
  const Json* value = step.find(key);
  return value == nullptr ? 1 : json_integer(*value, cat(source, ": '", key, "'"), 1, families::kMaxExperts);
}

}  // namespace

std::optional<RecordedGrowth> newest_growth(const Json& lineage) {
  const auto parents = newest_parents(lineage);
  if (!parents) return std::nullopt;
  const Json& step = lineage.at("steps").items().back();
  const std::string source = cat(io::kLineageFile, ": step ", lineage.at("steps").items().size() - 1);
  return naming(source, [&] {
    RecordedGrowth out{.plan = {}, .source_digest = step.at("source_digest").as_string(), .command = ""};
    out.command = command_of(step);
    const Json* settings = step.find("settings");
    const Json* dequantize = settings != nullptr && settings->is_object() ? settings->find("dequantize") : nullptr;
    out.dequantizes = dequantize != nullptr && *dequantize == Json(true);
    GrowthPlan& plan = out.plan;
    plan.seed = seed_of_step(step, source);
    plan.experts_before = step.at("experts").items()[0].as_int();
    plan.experts_after = step.at("experts").items()[1].as_int();
    plan.order = order_from_name(step.at("order").as_string(), cat(source, ": 'order'"));
    plan.top_k_factor = whole_or_one(step, "top_k_factor", source);
    plan.split = whole_or_one(step, "split", source);
    for (const auto& [layer, of_layer] : *parents) {
      LayerPlan& layer_plan = plan.layers.emplace_back(LayerPlan{.layer = layer, .children = {}});
      std::vector<uint32_t> seen(static_cast<size_t>(plan.experts_before), 0);
      for (const uint32_t parent : of_layer) layer_plan.children.push_back({parent, seen[parent]++});
    }
    const Json& methods = step.at("methods");
    plan.select = methods.at("select").as_string();
    const Json* parameters = methods.find(kParametersKey);
    plan.expert_init = read_choice(methods, "expert_init", parameters);
    plan.router_init = read_choice(methods, "router_init", parameters);
    plan.optimizer_state = read_choice(methods, "optimizer_state", parameters);
    plan.balance_bias = methods.at("balance_bias").as_string();
    check_balance_bias(plan.balance_bias, cat(source, ": 'balance_bias'"));
    read_layer_methods(methods, parameters, source, plan.layers);
    check_methods(plan);
    return out;
  });
}

GrowthPlan growth_of(const families::ModelConfig& config, const RecordedGrowth& recorded) {
  GrowthPlan plan = recorded.plan;
  if (plan.experts_before != config.num_experts) {
    throw Error(ErrorCode::kFormat, cat(io::kLineageFile, ": the newest expansion started from ", plan.experts_before,
                                        " experts, but the model before has ", config.num_experts));
  }
  set_factors(config, plan);
  GrowthPlan counted = plan;  // the rules do not cover layers past the last one that config.json counts
  std::erase_if(counted.layers, [&](const LayerPlan& layer) { return layer.layer >= config.num_layers; });
  check_plan(config, counted, true);
  return plan;
}

}  // namespace coppice::plan
