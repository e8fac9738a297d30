#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coppice/dist/world.h"
#include "coppice/train/tensorboard.h"

namespace coppice::train {

/// Counts what this rank hands to others, from one call to the next.
class TrafficMeter {
 public:
  /// `world` outlives the meter; null: there is nothing to count.
  explicit TrafficMeter(dist::World* world) : world_(world) { (void)read(); }

  /// Bytes since the last call (since the start), by collective: sent/reduce_scatter, sent/all_gather, sent/all_to_all
  /// (with gradients, values and rows of tokens), sent/all_reduce, sent/broadcast. Empty on one rank.
  ///
  /// `to_gather`: bytes of all-gathers that belong to the steps so far and begin later (Optimizer::bytes_to_gather).
  std::vector<Scalar> read(uint64_t to_gather = 0);

 private:
  dist::World* world_;
  std::map<std::string, uint64_t> before_;
};

}  // namespace coppice::train
