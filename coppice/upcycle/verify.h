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
  int64_t identical = 0;        ///< tensors bit-identical under the same name
  int64_t experts_original = 0; ///< expert tensors that are a parent's, byte for byte
  int64_t experts_changed = 0;  ///< expert tensors that derive from a parent but differ
  int64_t experts_before = 0, experts_after = 0;
  std::map<int64_t, std::vector<int64_t>> parents;  ///< layer -> [N]; -1 = no parent recognised
  double smallest_cosine = 1;   ///< of a changed expert to its parent
  std::vector<std::string> problems;  ///< each a sentence naming a tensor; empty if ok
  Json to_json() const;
};

/// Memory   a window of one tensor per thread.
VerifyResult verify(const families::Model& before, const families::Model& after, size_t threads);

}  // namespace coppice::upcycle
