#pragma once

#include <optional>
#include <string>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// The expansion that the newest step of a lineage records: all that is needed to repeat it, except the factors that
/// follow from the model (see `growth_of`).
struct RecordedGrowth {
  GrowthPlan plan;  ///< a parent's first child is the original, and the others are numbered in their order
  std::string source_digest, command;
  bool dequantizes = false;  ///< the model before was read in bf16 (`--dequantize`)
};
/// The newest step, if that is an expansion.
///
/// Throws   Error{kFormat} naming step and key.
std::optional<RecordedGrowth> newest_growth(const Json& lineage);

/// The plan of a recorded expansion with the factors that follow from `config`, the model that it started from.
///
/// Throws   Error{kFormat, kUsage, kUnsupported} if it cannot belong to this model.
GrowthPlan growth_of(const families::ModelConfig& config, const RecordedGrowth& recorded);

}  // namespace coppice::plan
