#pragma once

// Which rank has which elements of the master weights and moments.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "coppice/dist/group.h"
#include "coppice/nn/division.h"
#include "coppice/nn/parameter.h"
#include "coppice/step/buckets.h"

namespace coppice::step {

/// A run of elements of a whole parameter (that of an undivided model) on one rank.
struct Shard {
  int64_t rank = 0;
  Interval elements;

  bool operator==(const Shard&) const = default;
};

/// What the division of a parameter depends on.
struct ParameterSize {
  families::Role role{};
  int64_t layer = -1;
  int64_t count = 0;    ///< elements of the whole parameter; of one expert if it has experts
  int64_t experts = 0;  ///< on all ranks of an expert group; 0 if it has none
};
/// Those of a model's parameters, on any rank.
std::vector<ParameterSize> sizes_of(const std::vector<nn::Parameter>& parameters, const nn::Division& division);

/// The division of all parameters of a model over ranks: a pure function of their sizes, so every rank knows that of
/// all others.
class ShardLayout {
 public:
  /// Buckets of parameters without experts have about `most` elements.
  ShardLayout(std::vector<ParameterSize> sizes, const nn::Division& division, int64_t most = kBucketElements);

  /// 32 MiB of gradients: large enough for full bandwidth.
  static constexpr int64_t kBucketElements = int64_t{8} << 20;

  /// The buckets of this rank.
  const std::vector<Bucket>& buckets() const { return by_group_.at(static_cast<size_t>(rank_ % expert_ranks_)); }
  /// The elements of this rank's own values of a parameter whose masters and moments it has.
  Interval kept(size_t parameter) const { return kept_by(parameter, rank_); }
  /// The shards of a parameter on all ranks: by rank, and for each rank in the order in which it holds them.
  std::vector<Shard> shards(size_t parameter) const;
  /// The experts of a parameter that a rank has, in rising order; empty if it has no experts.
  const std::vector<int64_t>& experts_of(size_t parameter, int64_t rank) const;
  const std::vector<ParameterSize>& sizes() const { return sizes_; }
  int64_t whole_count(size_t parameter) const;  ///< elements of the whole parameter
  /// Elements of the whole parameter that belong to these experts.
  std::vector<Interval> elements_of(size_t parameter, std::span<const int64_t> experts) const;
  /// Where a parameter lies; the same on every rank, because all have the same buckets but for the counts of experts.
  struct Place {
    size_t bucket = 0, part = 0;
  };
  const Place& place(size_t parameter) const { return place_[parameter]; }

  int64_t ranks() const { return ranks_; }
  int64_t expert_ranks() const { return expert_ranks_; }  ///< of an expert group
  int64_t rank() const { return rank_; }

 private:
  Interval kept_by(size_t parameter, int64_t rank) const;

  int64_t ranks_ = 1, rank_ = 0, expert_ranks_ = 1;
  std::vector<ParameterSize> sizes_;
  std::vector<std::vector<std::vector<int64_t>>> experts_;  // by parameter and rank of an expert group
  std::vector<std::vector<Bucket>> by_group_;               // buckets by rank of an expert group
  std::vector<Place> place_;                                // of each parameter
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
