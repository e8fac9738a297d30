#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "coppice/cost/plan_options.h"
#include "coppice/families/model_config.h"

namespace coppice::cli {

/// Median seconds of a real training step with each number of experts: random weights of the model's shape, random
/// tokens. Four rounds over all of them, the fastest median of each; nothing is written.
///
/// Throws   Error{kUnsupported} in the core build, and for a family that coppice does not train; Error{kUsage} for sizes
///          that the trainer cannot have; Error{kIo} where the largest would not fit into the memory that is free.
std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                      const cost::PlanOptions& options);

}  // namespace coppice::cli
