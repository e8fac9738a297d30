#pragma once

#include <optional>
#include <string>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {

/// What the newest step of a lineage says of an expansion: all that is needed to make it again, but for the factors that
/// follow from the model (see `growth_of`).
struct RecordedGrowth {
  GrowthPlan plan;  ///< a parent's first child is the original, the others count in their order
  std::string source_digest, command;
};
/// The newest step, if that is an expansion.
///
/// Throws   Error{kFormat} naming step and key.
std::optional<RecordedGrowth> newest_growth(const Json& lineage);

/// The plan of a recorded growth for the model that it started from: with the factors that follow from the model.
///
/// Throws   Error{kFormat, kUsage, kUnsupported} where it cannot be of this model.
GrowthPlan growth_of(const families::ModelConfig& config, const RecordedGrowth& recorded);

}  // namespace coppice::plan
