#include "coppice/upcycle/undo.h"

#include <algorithm>
#include <functional>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/upcycle/lineage.h"
#include "coppice/upcycle/optimizer_init.h"

namespace coppice::upcycle {
namespace {

[[noreturn]] void fail(std::string_view problem) {
  throw Error(ErrorCode::kFormat, cat(kLineageFile, ": ", problem,
                                      "; wanted the lineage of this model (undo the model as it was written)"));
}

int64_t whole_or(const Json& step, std::string_view key, int64_t fallback) {
  const Json* value = step.find(key);
  if (value == nullptr) return fallback;
  const int64_t number = value->as_int();
  if (number < 1) fail(cat("'", key, "' is ", number));
  return number;
}

/// Where the original of each parent is: its first child.
std::vector<Child> originals(const std::vector<uint32_t>& parents, int64_t experts, int64_t layer) {
  std::vector<Child> out;
  for (uint32_t expert = 0; expert < experts; ++expert) {
    const auto found = std::ranges::find(parents, expert);
    if (found == parents.end()) fail(cat("layer ", layer, " has no child of expert ", expert));
    out.push_back({.parent = static_cast<uint32_t>(found - parents.begin()), .copy = 0});
  }
  return out;
}

}  // namespace

GrowthPlan undo_plan(const families::ModelConfig& config, const std::optional<Json>& lineage) {
  const auto parents = lineage ? newest_parents(*lineage) : std::nullopt;
  if (!parents) {
    throw Error(ErrorCode::kUsage, cat("undo: the model has no ", kLineageFile,
                                       " that names an expansion, so its originals are not known"));
  }
  const Json& step = lineage->at("steps").items().back();
  if (whole_or(step, "split", 1) > 1) {
    throw Error(ErrorCode::kUsage,
                "undo: the newest step of the lineage cut experts into parts, which are no originals "
                "to go back to (use the model before)");
  }
  const auto& counts = step.at("experts").items();
  if (counts[1].as_int() != config.num_experts) {
    fail(cat("the newest expansion made ", counts[1].as_int(), " experts and the model has ", config.num_experts));
  }
  GrowthPlan plan;
  plan.is_undo = true;
  plan.experts_before = config.num_experts;
  plan.experts_after = counts[0].as_int();
  plan.top_k_factor = whole_or(step, "top_k_factor", 1);
  if (const Json* factor = step.find("selection_bias_factor")) {
    if (!(factor->as_double() > 0)) fail(cat("'selection_bias_factor' is ", factor->dump()));
    plan.selection_bias_factor = 1.0 / factor->as_double();
  }
  for (const auto& [layer, of_layer] : *parents) {
    plan.layers.push_back({.layer = layer, .children = originals(of_layer, plan.experts_after, layer)});
  }
  const auto past_last = [&config](const LayerPlan& layer) { return layer.layer >= config.num_layers; };
  const auto [first, last] = std::ranges::partition(plan.layers, std::not_fn(past_last));
  const std::vector<LayerPlan> of_prediction(first, last);  // which configurations do not count
  plan.layers.erase(first, last);
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);
  check_plan(config, plan, true);
  if (plan.layers.empty()) fail("no layer of the model has parents");
  plan.layers.insert(plan.layers.end(), of_prediction.begin(), of_prediction.end());
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);
  return plan;
}

std::string undo_remainder(const Json& lineage) {
  const Json& methods = lineage.at("steps").items().back().at("methods");
  std::vector<std::string> changed;
  const auto text = [&](std::string_view key) {
    const Json* value = methods.find(key);
    return value != nullptr && value->is_string() ? value->as_string() : std::string();
  };
  if (text("router_init").find("noise_to_original=1") != std::string::npos) {
    changed.emplace_back("the originals keep the noise on their biases");
  }
  for (const OptimizerInit& strategy : optimizer_inits()) {
    const std::string given = text("optimizer_state");
    if (strategy.touches_original && given.substr(0, given.find(':')) == strategy.name) {
      changed.push_back(cat("the originals keep the optimizer state that '", strategy.name, "' gave them"));
    }
  }
  return join(changed, "; ");
}

}  // namespace coppice::upcycle
