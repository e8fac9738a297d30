#pragma once

// Values, gradients and masters of a model whose training is divided over ranks, in buckets (buckets.h).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "coppice/dist/group.h"
#include "coppice/dist/world.h"
#include "coppice/nn/decoder.h"
#include "coppice/nn/parameter.h"
#include "coppice/step/shards.h"

namespace coppice::step {

class Optimizer;

/// The buckets of one rank in memory. The values of a bucket's parameters are views of one tensor, which is filled by an
/// all-gather after each update; their gradients are added to another one, which is summed over ranks by a
/// reduce-scatter as soon as the last backward pass of a batch has filled it, while that pass goes on.
///
/// Memory   values in the dtype of computation, gradients 4 bytes an element, masters of the kept elements 4 bytes if
///          the values are bf16. On the host two buckets of gradients, or of values, more while they are under way.
/// Ranks    all of the world make the same calls in the same order.
class DividedState {
 public:
  /// Moves the values of `parameters` into buckets, and cuts their masters to the elements that this rank keeps, unless
  /// they have been cut (keep_masters).
  ///
  /// Memory   values of a bucket twice while they are moved.
  DividedState(std::vector<nn::Parameter>& parameters, const nn::Division& division);
  ~DividedState();
  DividedState(const DividedState&) = delete;
  DividedState& operator=(const DividedState&) = delete;

  const ShardLayout& layout() const { return layout_; }
  dist::World& world() const { return *world_; }

  /// Before the first pass of a batch. Until finish_batch, backward passes add their gradients here; at other times they
  /// leave them at the values.
  void begin_batch();
  /// The next backward pass is the last of the batch: full buckets are summed while it runs.
  void begin_last_pass();
  /// After the last pass: waits for the sums.
  void finish_batch();
  /// The summed gradient of the kept elements of a parameter, f32, flat.
  at::Tensor gradient(size_t parameter) const;
  /// The values of the kept elements, flat, to be updated; then `gather_values`.
  at::Tensor kept_values(size_t parameter) const;

  /// Starts to bring the new values to all ranks.
  void gather_values();
  /// Waits for those that layers up to `layer` read (-1: the embedding).
  void wait_for_values(int64_t layer);
  /// Bytes that this rank will send of those whose way has not begun.
  uint64_t bytes_to_gather() const;

 private:
  struct Memory;  // of one bucket
  class Hook;
  void add_gradient(size_t parameter, const at::Tensor& gradient);
  void start_full_buckets(bool all);
  // Waits for the sums of so many buckets, counted from the last one.
  void wait_for_sums(size_t buckets);
  // Starts to bring the values of the buckets that are read next.
  void start_gathering();
  // The kept elements of a parameter in a tensor that has the bucket's elements from `origin` on.
  at::Tensor kept_part(size_t parameter, const at::Tensor& flat, int64_t origin) const;

  std::shared_ptr<dist::World> world_;
  ShardLayout layout_;
  std::vector<Memory> memory_;  // of layout_.buckets()
  bool is_in_batch_ = false, is_last_pass_ = false;
  size_t most_under_way_ = 0;                     // buckets that are summed or gathered at the same time
  size_t next_to_sum_ = 0, next_summed_ = 0;      // buckets from the end whose sums have begun, and are there
  size_t next_to_gather_ = 0, next_to_read_ = 0;  // buckets from the start whose values are under way, and are there
};

/// For a decoder that will be trained on these ranks: it keeps what DividedState does. One rank keeps all.
nn::KeepMasters keep_masters(const nn::Division& division);

/// The whole master of a parameter, with the experts of all ranks: on one rank itself, on several a flat copy on the first
/// rank and an empty tensor on the others.
///
/// Ranks    collective over those that divide `optimizer`.
at::Tensor master_on_first_rank(const Optimizer& optimizer, const std::vector<nn::Parameter>& parameters, size_t i);

}  // namespace coppice::step
