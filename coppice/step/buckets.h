#pragma once

// How the training state is divided over ranks. The gradients of several parameters lie one after another in a bucket,
// which is summed over ranks at once; every rank then keeps one interval of each bucket: it has the master weights and
// moments of these elements, and updates them (ZeRO-1).

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace coppice::step {

/// Elements [begin, end).
struct Interval {
  int64_t begin = 0, end = 0;

  int64_t count() const { return end > begin ? end - begin : 0; }
  bool operator==(const Interval&) const = default;
};
/// What both have; empty if they have nothing in common.
Interval intersection(const Interval& a, const Interval& b);

/// What the division must know of a parameter.
struct LocalSize {
  int64_t layer = -1;    ///< the layer whose forward pass reads it first: -1 for the embedding, then 0, 1, ...
  bool experts = false;  ///< of the experts of an MoE layer
  int64_t count = 0;     ///< elements on one rank
};

/// A run of parameters whose gradients are summed over the same ranks at once.
struct Bucket {
  struct Part {
    size_t parameter = 0;
    int64_t begin = 0, count = 0;  ///< place in the bucket
  };
  bool experts = false;  ///< summed over the ranks that have the same experts, otherwise over all
  int64_t layer = -1;    ///< first layer of its parameters
  std::vector<Part> parts;
  int64_t count = 0;  ///< elements, with padding at the end: a multiple of the number of ranks that it is summed over

  /// The interval of the bucket that rank `rank` of `ranks` keeps.
  Interval kept(int64_t rank, int64_t ranks) const;
  /// The elements of a part's parameter within that interval.
  Interval kept_of(const Part& part, int64_t rank, int64_t ranks) const;
};

/// The buckets of one rank, in the order in which the forward pass reads their parameters. Parameters of a layer's
/// experts are one bucket whatever their size, so that the number of buckets is the same on every rank; other
/// parameters fill a bucket until it has `most` elements.
///
/// `ranks` sum the gradients of experts in `experts_ranks`, others in `ranks`.
std::vector<Bucket> make_buckets(std::span<const LocalSize> parameters, int64_t ranks, int64_t experts_ranks,
                                 int64_t most);

}  // namespace coppice::step
