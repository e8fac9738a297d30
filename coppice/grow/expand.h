#pragma once

#include <cstdint>

#include "coppice/families/match.h"
#include "coppice/output/write_model.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// Writes the model that `plan` makes from `model`: every tensor, config.json, companion files, lineage, and trainer/
/// if the source has one.
///
/// Memory   constant: see write_model.
/// Threads  the bytes do not depend on the number of threads or parts.
/// Throws   Error{kUsage, kIo, kInterrupted}; Error{kFormat, kShape, kUnsupported} for a lineage or trainer/ that
///          cannot be expanded, and if the source changed during this run or since the run that it continues. Nothing
///          is left under the final name.
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
