#include "coppice/plan/text.h"

#include <cstdint>
#include <map>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/base/toml.h"

namespace coppice::plan {
namespace {

/// Rising numbers as text: "0-5, 7".
std::string ranges_text(const std::vector<uint32_t>& numbers) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    parts.push_back(last == i ? cat(numbers[i]) : cat(numbers[i], "-", numbers[last]));
    i = last + 1;
  }
  return join(parts);
}

std::string layer_text(const methods::LayerPlan& layer, int64_t experts_before) {
  std::map<uint32_t, std::vector<uint32_t>> parents_of_count;
  const std::vector<uint32_t> siblings = layer.siblings(experts_before);
  for (uint32_t parent = 0; parent < siblings.size(); ++parent) {
    if (siblings[parent] > 1) parents_of_count[siblings[parent] - 1].push_back(parent);
  }
  std::vector<std::string> parts;
  for (const auto& [count, parents] : parents_of_count) {
    parts.push_back(cat(count, count == 1 ? " copy of " : " copies of ", parents.size() > 1 ? "each of " : "",
                        ranges_text(parents)));
  }
  return join(parts, "; ");
}

}  // namespace

std::string copies_text(const GrowthPlan& plan) {
  std::string out;
  for (size_t i = 0; i < plan.layers.size();) {
    const std::string text = layer_text(plan.layers[i], plan.experts_before);
    size_t last = i;
    while (last + 1 < plan.layers.size() && layer_text(plan.layers[last + 1], plan.experts_before) == text) ++last;
    const int64_t from = plan.layers[i].layer, to = plan.layers[last].layer;
    out += from == to ? cat("layer ", from) : cat("layers ", from, "-", to);
    out += cat(": ", text, "\n");
    i = last + 1;
  }
  return out;
}

std::string methods_text(const GrowthPlan& plan) {
  if (plan.is_undo) return "keep only the originals, in their earlier order";
  if (plan.split > 1) {
    return cat("split into ", plan.split, ", order ", plan.order == Order::kSiblings ? "siblings" : "append");
  }
  std::string text =
      cat("select ", plan.select, ", expert-init ", plan.expert_init.to_text(), ", router-init ",
          plan.router_init.to_text(), ", balance-bias ", plan.balance_bias, ", optimizer-state ",
          plan.optimizer_state.to_text(), ", order ", plan.order == Order::kSiblings ? "siblings" : "append");
  for (const methods::LayerPlan& layer : plan.layers) {
    if (layer.expert_init) text += cat("; layer ", layer.layer, ": expert-init ", layer.expert_init->to_text());
    if (layer.router_init) text += cat("; layer ", layer.layer, ": router-init ", layer.router_init->to_text());
  }
  return text;
}

std::string plan_toml(const GrowthPlan& plan) { return toml_text(plan.to_json()); }

}  // namespace coppice::plan
