#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coppice/nn/placement.h"

namespace coppice::dist {
class World;
}
namespace coppice::families {
struct ModelConfig;
}

namespace coppice::nn {

/// How a model is divided over ranks: each rank has all parameters but those of experts, of which it has its own.
struct Division {
  std::shared_ptr<dist::World> world;            ///< null: one rank
  int64_t expert_rank = 0;                       ///< of this process, in its expert group
  std::map<int64_t, ExpertPlacement> placement;  ///< by MoE layer; a layer without one has all its experts here

  /// The experts of this rank, in rising order.
  std::vector<int64_t> experts(int64_t layer, int64_t num_experts) const;
};

/// The experts of every MoE layer over the expert groups of `world`. `parents` are the lineages of the experts by layer,
/// as place_experts wants them; empty: none.
///
/// Ranks    a pure function of what all ranks have.
/// Throws   Error{kUsage} if an expert group has more ranks than a layer has experts.
Division divide(std::shared_ptr<dist::World> world, const families::ModelConfig& config,
                const std::map<int64_t, std::vector<uint32_t>>& parents = {});

}  // namespace coppice::nn
