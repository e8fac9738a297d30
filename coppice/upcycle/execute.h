#pragma once

#include <cstdint>
#include <filesystem>

#include "coppice/families/match.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

struct ExpandResult {
  int64_t tensors_written = 0;
  uint64_t bytes_written = 0;
  uint64_t peak_rss_bytes = 0;
  bool optimizer_state = false;  ///< trainer/ was there and was grown too
};

struct ExpandSettings {
  std::filesystem::path out;
  size_t threads = 1;
  uint64_t max_shard_bytes = uint64_t{5} << 30;
};

/// Writes the model grown by `plan`: every tensor, config.json, companion files, lineage, and trainer/ if the source has one.
///
/// Memory   constant: a bounded window per thread, two fp32 copies of one matrix for methods that compute.
/// Throws   Error{kUsage, kIo, kInterrupted}; nothing is left under the final name.
ExpandResult expand(const families::Model& model, const GrowthPlan& plan, const ExpandSettings& settings);

}  // namespace coppice::upcycle
