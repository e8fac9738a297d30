#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace coppice::nn {

/// The experts of one MoE layer over the ranks of an expert group.
struct ExpertPlacement {
  int64_t num_ranks = 1;
  std::vector<int64_t> rank_of;  ///< [E], rank in the group

  int64_t num_experts() const { return std::ssize(rank_of); }
  int64_t most_experts() const { return (num_experts() + num_ranks - 1) / num_ranks; }  ///< of a rank
  std::vector<int64_t> experts_of(int64_t rank) const;                                  ///< in rising order
};

/// Gives each rank its experts, at least one and at most ceil(E / ranks), so that siblings are apart.
///
/// Experts are placed in rising order, each on the rank with the fewest siblings of its lineage; among those on the one
/// with the fewest experts; among those on the lowest. So without a lineage expert e is on rank e mod ranks, and the
/// first child of each parent is where its parent was, if an expansion has numbered it like its parent and `parents`
/// names the same ancestors as before.
/// Ranks    a pure function: every rank gets the same answer.
/// Throws   Error{kUsage} if there are more ranks than experts.
///
/// `parents` [E] is the lineage of each expert, or empty.
ExpertPlacement place_experts(int64_t num_experts, std::span<const uint32_t> parents, int64_t num_ranks);

}  // namespace coppice::nn
