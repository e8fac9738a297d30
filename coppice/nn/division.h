#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coppice/nn/placement.h"

namespace coppice::dist {
class World;
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

}  // namespace coppice::nn
