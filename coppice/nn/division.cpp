#include "coppice/nn/division.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/dist/world.h"
#include "coppice/families/model_config.h"
#include "coppice/nn/host.h"

namespace coppice::nn {

std::vector<int64_t> Division::experts(int64_t layer, int64_t num_experts) const {
  return experts_of(layer, num_experts, expert_rank);
}

std::vector<int64_t> Division::experts_of(int64_t layer, int64_t num_experts, int64_t rank) const {
  const auto found = placement.find(layer);
  if (found != placement.end()) {
    COPPICE_CHECK(found->second.num_experts() == num_experts, "layer ", layer);
    return found->second.experts_of(rank);
  }
  std::vector<int64_t> all(static_cast<size_t>(num_experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

int64_t Division::num_ranks() const { return world ? world->size() : 1; }

Division::Share Division::share_of(uint64_t items) const {
  const auto rank = static_cast<uint64_t>(world ? world->rank() : 0), ranks = static_cast<uint64_t>(num_ranks());
  const auto begin = [&](uint64_t r) { return items / ranks * r + std::min(r, items % ranks); };
  return {begin(rank), begin(rank + 1) - begin(rank)};
}

namespace {

template <class T>
void reduce(const std::shared_ptr<dist::World>& world, std::span<T> values, dist::Reduce how) {
  if (!world || world->size() == 1) return;
  const auto here = from_host<T>(std::span<const T>(values), {std::ssize(values)}, at::kCPU);
  world->control().all_reduce(here, how).wait();
  std::ranges::copy(host_values<T>(here), values.begin());
}

}  // namespace

void Division::sum_over_ranks(std::span<double> values) const { reduce(world, values, dist::Reduce::kSum); }
void Division::sum_over_ranks(std::span<int64_t> values) const { reduce(world, values, dist::Reduce::kSum); }
void Division::max_over_ranks(std::span<double> values) const { reduce(world, values, dist::Reduce::kMax); }

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
