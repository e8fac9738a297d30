#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"

namespace coppice::upcycle {

/// What became of every tensor between two checkpoints; needs no lineage file: parents are found by content.
struct VerifyResult {
  bool ok = false;
  int64_t identical = 0;         ///< tensors bit-identical under the same name
  int64_t experts_original = 0;  ///< expert tensors that are a parent's, byte for byte
  int64_t experts_changed = 0;   ///< expert tensors that derive from a parent but differ
  int64_t experts_before = 0, experts_after = 0;
  int64_t top_k_factor = 1;                         ///< a token is routed to so many times more experts
  int64_t split = 1;                                ///< every expert is so many of the grown model's
  int64_t router_rows_equal = 0;                    ///< router rows that are the parent's, byte for byte
  int64_t router_rows_changed = 0;                  ///< router rows near the parent's
  int64_t biases_changed = 0;                       ///< router and selection biases that differ from the parent's
  std::map<int64_t, std::vector<int64_t>> parents;  ///< layer -> [N]; -1 = no parent recognised
  double smallest_cosine =
      1;  ///< of a changed expert to its parent, over sampled entries; 1 for units in another order
  std::vector<std::string> problems;  ///< each a sentence naming a tensor; empty if ok
  Json to_json() const;
};

/// Strict: the same configuration apart from the expert count and what a growth changes with it (top-K; a split's
/// expert width); every tensor outside experts and routers bit-identical;
/// every original expert there unchanged; every other expert a parent's copy, near one (cosine above 0.2) or one with
/// its units in another order; every router row near its expert's parent's. A split is made again and compared byte for
/// byte.
///
/// Memory   a window of one tensor per thread.
/// Threads  the same result for any number.
/// Throws   Error{kInterrupted}; what is wrong with `after` is in `problems`.
VerifyResult verify(const families::Model& before, const families::Model& after, size_t threads);

}  // namespace coppice::upcycle
