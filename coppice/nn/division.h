#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
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
  /// Those of another rank of an expert group.
  std::vector<int64_t> experts_of(int64_t layer, int64_t num_experts, int64_t rank) const;
  /// Whether forward passes are collective over the expert group, so that a rank without sequences makes them too.
  bool is_joint() const { return world && !placement.empty(); }
  int64_t num_ranks() const;  ///< all of them

  /// This rank's part of `items` that all ranks divide evenly: neighbours, in the order of ranks.
  struct Share {
    uint64_t first = 0, count = 0;
  };
  Share share_of(uint64_t items) const;

  /// Sums over all ranks, in place.
  ///
  /// Ranks    collective over all; nothing is sent if there is one.
  void sum_over_ranks(std::span<double> values) const;
  void sum_over_ranks(std::span<int64_t> values) const;
  void max_over_ranks(std::span<double> values) const;
};

/// The experts of every MoE layer over the expert groups of `world`. `parents` are the lineages of the experts by layer,
/// as place_experts wants them; empty: none.
///
/// Ranks    a pure function of what all ranks have.
/// Throws   Error{kUsage} if an expert group has more ranks than a layer has experts.
Division divide(std::shared_ptr<dist::World> world, const families::ModelConfig& config,
                const std::map<int64_t, std::vector<uint32_t>>& parents = {});

}  // namespace coppice::nn
