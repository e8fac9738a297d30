#include "coppice/plan/undo.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/matrix/factor_loss.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/plan/lineage.h"

namespace coppice::plan {
namespace {

using methods::LayerPlan;
using methods::MethodChoice;

namespace fs = std::filesystem;

[[noreturn]] void fail(std::string_view problem) {
  throw Error(ErrorCode::kFormat, cat(io::kLineageFile, ": ", problem,
                                      "; wanted the lineage of this model (use the directory as `expand` wrote it)"));
}

int64_t whole_or(const Json& step, std::string_view key, int64_t fallback) {
  const Json* value = step.find(key);
  if (value == nullptr) return fallback;
  const int64_t number = value->as_int();
  if (number < 1) fail(cat("'", key, "' is ", number));
  return number;
}

/// The position of each parent's original: its first child.
std::vector<methods::Child> originals(const std::vector<uint32_t>& parents, int64_t experts, int64_t layer) {
  std::vector<methods::Child> out;
  for (uint32_t expert = 0; expert < experts; ++expert) {
    const auto found = std::ranges::find(parents, expert);
    if (found == parents.end()) fail(cat("layer ", layer, " has no child of expert ", expert));
    out.push_back({.parent = static_cast<uint32_t>(found - parents.begin()), .copy = 0});
  }
  return out;
}

/// Whether a method of the step, for all layers or for a single one, satisfies `is_it`.
bool uses(const Json& methods, std::string_view key, const std::function<bool(const MethodChoice&)>& is_it) {
  const auto says = [&](const Json& of) {
    const Json* value = of.find(key);
    return value != nullptr && value->is_string() && is_it(MethodChoice::from_text(value->as_string()));
  };
  if (says(methods)) return true;
  const Json* layers = methods.find("layers");
  return layers != nullptr && layers->is_object() &&
         std::ranges::any_of(layers->members(), [&](const auto& member) { return says(member.second); });
}

}  // namespace

GrowthPlan undo_plan(const families::ModelConfig& config, const std::optional<Json>& lineage) {
  const auto parents = lineage ? newest_parents(*lineage) : std::nullopt;
  if (!parents) {
    throw Error(ErrorCode::kUsage, cat("undo: the model has no ", io::kLineageFile,
                                       " that records an expansion, so its original experts are not known"));
  }
  const Json& step = lineage->at("steps").items().back();
  if (whole_or(step, "split", 1) > 1) {
    throw Error(ErrorCode::kUsage,
                "undo: the newest step of the lineage is a split, which has no original experts to keep (use the model "
                "before it)");
  }
  const auto& counts = step.at("experts").items();
  if (counts[1].as_int() != config.num_experts) {
    fail(cat("the newest expansion made ", counts[1].as_int(), " experts, but the model has ", config.num_experts));
  }
  GrowthPlan plan;
  plan.is_undo = true;
  plan.experts_before = config.num_experts;
  plan.experts_after = counts[0].as_int();
  plan.top_k_factor = whole_or(step, "top_k_factor", 1);
  set_factors(config, plan);
  if (const Json* factor = step.find("selection_bias_factor"); factor != nullptr) {
    const double wanted = 1.0 / plan.selection_bias_factor;
    if (factor->as_double() != wanted)
      fail(cat("selection biases were multiplied by ", factor->dump(), "; wanted ", wanted,
               ", which keeps the function"));
  }
  for (const auto& [layer, of_layer] : *parents) {
    plan.layers.push_back({.layer = layer, .children = originals(of_layer, plan.experts_after, layer)});
  }
  const auto past_last = [&config](const LayerPlan& layer) { return layer.layer >= config.num_layers; };
  const auto [first, last] = std::ranges::partition(plan.layers, std::not_fn(past_last));
  const std::vector<LayerPlan> of_prediction(first, last);  // layers that config.json does not count
  plan.layers.erase(first, last);
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);
  check_plan(config, plan, true);
  if (plan.layers.empty()) fail("it has no parents for any layer of the model");
  plan.layers.insert(plan.layers.end(), of_prediction.begin(), of_prediction.end());
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);
  return plan;
}

std::string undo_text(const families::Model& grown, const GrowthPlan& plan, const Json& lineage,
                      const families::Model& undone) {
  const Json& step = lineage.at("steps").items().back();
  std::vector<std::string> changed;
  if (uses(step.at("methods"), "router_init", [](const MethodChoice& choice) {
        const auto noise = choice.given.find("noise_to_original");
        return noise != choice.given.end() && noise->second != 0;
      })) {
    changed.emplace_back("the original experts keep the noise on their biases");
  }
  if (fs::is_directory(grown.checkpoint.directory() / io::kTrainerFolder)) {
    for (const methods::OptimizerInit& strategy : methods::optimizer_inits()) {
      const auto is_it = [&](const MethodChoice& choice) { return choice.name == strategy.name; };
      if (strategy.touches_original && uses(step.at("methods"), "optimizer_state", is_it))
        changed.push_back(cat("the original experts keep the optimizer state that '", strategy.name, "' gave them"));
    }
  }
  const Json* settings = step.find("settings");
  const Json* dequantize = settings != nullptr && settings->is_object() ? settings->find("dequantize") : nullptr;
  if (dequantize != nullptr && *dequantize == Json(true))
    changed.emplace_back("weights that were quantised stay in bf16");
  if (!matrix::is_power_of_two(plan.down_factor)) {
    changed.push_back(cat("down matrices that were divided by ", plan.down_factor,
                          " are multiplied by it again and may differ in the last digit"));
  }
  if (!matrix::is_power_of_two(plan.selection_bias_factor)) {
    changed.push_back(cat("selection biases that were divided by ", plan.selection_bias_factor,
                          " are multiplied by it again and may differ in the last digit"));
  }
  const bool scales = plan.down_factor != 1 || plan.selection_bias_factor != 1;
  std::string text =
      cat("Restored the originals from MODEL", scales ? ", except tensors that the top-K factor had scaled" : "",
          "; tensors that the expansion did not touch are unchanged.");
  if (!changed.empty()) text += cat(" Differences from the model before the expansion: ", join(changed, "; "), ".");
  const bool same = step.at("source_digest").as_string() == undone.digest();
  text += same ? " Configuration, shapes, routers and their biases equal those before the expansion."
               : " Configuration, routers or their biases differ from those before the expansion.";
  return text;
}

}  // namespace coppice::plan
