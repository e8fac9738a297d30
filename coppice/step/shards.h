#pragma once

// Which rank has which elements of the master weights and moments.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "coppice/nn/division.h"
#include "coppice/nn/parameter.h"
#include "coppice/step/buckets.h"

namespace coppice::step {

/// A run of elements of a whole parameter (that of an undivided model) on one rank.
struct Shard {
  int64_t rank = 0;
  Interval elements;
};

/// The division of all parameters of a model over ranks: a pure function of their sizes, so every rank knows that of
/// all others.
class ShardLayout {
 public:
  /// `parameters` of any rank. Buckets of dense parameters have about `most` elements.
  ShardLayout(const std::vector<nn::Parameter>& parameters, const nn::Division& division, int64_t most);

  /// The buckets of this rank.
  const std::vector<Bucket>& buckets() const { return by_group_.at(static_cast<size_t>(rank_ % expert_ranks_)); }
  /// The elements of this rank's own values of a parameter whose masters and moments it has.
  Interval kept(size_t parameter) const;
  /// The shards of a parameter on all ranks: by rank, and for each rank in the order in which it holds them.
  std::vector<Shard> shards(size_t parameter) const;
  /// Elements of the whole parameter.
  int64_t whole_count(size_t parameter) const;

  int64_t ranks() const { return ranks_; }
  int64_t rank() const { return rank_; }

 private:
  struct Size {
    int64_t layer = -1, count = 0;  // elements; of one expert if it has experts
    bool experts = false;
    int64_t num_experts = 0;
    std::vector<std::vector<int64_t>> experts_of;  // by rank of an expert group
  };
  Interval kept_by(size_t parameter, int64_t rank) const;

  int64_t ranks_ = 1, rank_ = 0, expert_ranks_ = 1;
  std::vector<Size> sizes_;
  std::vector<std::vector<Bucket>> by_group_;  // buckets by rank of an expert group
};

/// Brings elements of a divided tensor to the ranks that want them.
///
/// Shapes   `own` has this rank's shards, flat; `wanted` are intervals of the whole tensor, by rank; returns those of
///          this rank, one after another.
/// Dtypes   any.
/// Memory   what this rank sends and what it receives, twice.
/// Ranks    collective over all ranks of `group`; every rank passes the same `shards` and `wanted`.
at::Tensor gather_shards(dist::Group& group, const std::vector<Shard>& shards, const at::Tensor& own,
                         const std::vector<std::vector<Interval>>& wanted);

}  // namespace coppice::step
