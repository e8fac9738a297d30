#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/io/partial_directory.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

struct ExpandResult {
  int64_t tensors_written = 0;
  uint64_t bytes_written = 0;  ///< of tensors; what earlier runs had written counts too
  uint64_t bytes_resumed = 0;  ///< of those, what was there already
  uint64_t peak_rss_bytes = 0;
  bool optimizer_state = false;         ///< trainer/ was there and was grown too
  std::vector<uint32_t> missing_parts;  ///< that others have to write yet; none: the output is there
};

struct ExpandSettings {
  std::filesystem::path out;
  size_t threads = 1;
  uint64_t max_shard_bytes = uint64_t{5} << 30;
  Json record;          ///< the resolved settings, kept in the lineage; null: none
  io::Part part;        ///< the share of this process; the last of all to end gives the output its name
  bool resume = false;  ///< continue what a killed run left, and leave it to be continued if this one fails
};

/// Writes the model grown by `plan`: every tensor, config.json, companion files, lineage, and trainer/ if the source
/// has one.
///
/// Memory   constant: see write_output.
/// Threads  the same bytes for any number, and for any number of parts.
/// Throws   Error{kUsage, kIo, kInterrupted}; Error{kFormat, kShape, kUnsupported} for a lineage or trainer/ that
///          cannot be carried over, and if the source changed meanwhile or since the run that is continued. Nothing is
///          left under the final name.
ExpandResult expand(const families::Model& model, const GrowthPlan& plan, const ExpandSettings& settings);

/// Bytes of tensors that `expand` reads and writes.
struct ExpandBytes {
  uint64_t weights_before = 0, weights_after = 0;
  uint64_t optimizer_before = 0, optimizer_after = 0;  ///< 0 without trainer/
};
/// Memory   headers only; writes nothing.
/// Throws   Error{kFormat, kShape, kUnsupported} as `expand`.
ExpandBytes expand_bytes(const families::Model& model, const GrowthPlan& plan);

}  // namespace coppice::upcycle
