#include "coppice/nn/division.h"

#include <numeric>
#include <span>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/dist/world.h"
#include "coppice/families/model_config.h"

namespace coppice::nn {

std::vector<int64_t> Division::experts(int64_t layer, int64_t num_experts) const {
  const auto found = placement.find(layer);
  if (found != placement.end()) {
    COPPICE_CHECK(found->second.num_experts() == num_experts, "layer ", layer);
    return found->second.experts_of(expert_rank);
  }
  std::vector<int64_t> all(static_cast<size_t>(num_experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

Division divide(std::shared_ptr<dist::World> world, const families::ModelConfig& config,
                const std::map<int64_t, std::vector<uint32_t>>& parents) {
  Division out{.world = std::move(world)};
  if (!out.world || out.world->experts().size() == 1) return out;
  out.expert_rank = out.world->experts().rank();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.moe_layer[static_cast<size_t>(layer)]) continue;
    const auto of_layer = parents.find(layer);
    const auto lineages = of_layer == parents.end() ? std::span<const uint32_t>() : std::span(of_layer->second);
    out.placement[layer] = place_experts(config.num_experts, lineages, out.world->experts().size());
  }
  return out;
}

}  // namespace coppice::nn
