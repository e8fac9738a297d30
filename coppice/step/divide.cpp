#include "coppice/step/divide.h"

#include <utility>

namespace coppice::step {

nn::Division divide(std::shared_ptr<dist::World> world, const families::ModelConfig& config, const std::map<int64_t, std::vector<uint32_t>>& parents) {
  nn::Division out;
  if (!world || world->size() == 1) return out;
  out.expert_rank = world->experts().rank();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.moe_layer[static_cast<size_t>(layer)]) continue;
    const auto found = parents.find(layer);
    out.placement[layer] =
        nn::place_experts(config.num_experts, found == parents.end() ? std::span<const uint32_t>() : found->second,
                          world->experts().size());
  }
  out.world = std::move(world);
  return out;
}

}  // namespace coppice::step
