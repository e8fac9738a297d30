#pragma once

#include <cstdint>

#include "coppice/families/match.h"
#include "coppice/output/write_model.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// Writes the model grown by `plan`: every tensor, config.json, companion files, lineage, and trainer/ if the source
/// has one.
///
/// Memory   constant: see write_model.
/// Threads  the same bytes for any number, and for any number of parts.
/// Throws   Error{kUsage, kIo, kInterrupted}; Error{kFormat, kShape, kUnsupported} for a lineage or trainer/ that
///          cannot be carried over, and if the source changed meanwhile or since the run that is continued. Nothing is
///          left under the final name.
output::WrittenModel expand(const families::Model& model, const plan::GrowthPlan& plan,
                            const output::OutputSettings& settings);

/// Bytes of tensors that `expand` reads and writes.
struct ExpandBytes {
  uint64_t weights_before = 0, weights_after = 0;
  uint64_t optimizer_before = 0, optimizer_after = 0;  ///< 0 without trainer/
};
/// Memory   headers only; writes nothing.
/// Throws   Error{kFormat, kShape, kUnsupported} as `expand`.
ExpandBytes expand_bytes(const families::Model& model, const plan::GrowthPlan& plan);

}  // namespace coppice::grow
