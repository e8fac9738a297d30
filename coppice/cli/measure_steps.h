#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "coppice/cost/plan_options.h"
#include "coppice/families/model_config.h"

namespace coppice::cli {

/// Seconds per training step for each number of experts, measured with random weights of the model's shape and random
/// tokens. All numbers are timed in each of four rounds; the result is the smallest of the four medians. Nothing is
/// written.
///
/// Throws   Error{kUnsupported} in the core build, and for a family that coppice does not train; Error{kUsage} for
///          sizes that the trainer does not accept; Error{kIo} if the largest model does not fit into free memory.
std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                      const cost::PlanOptions& options);

}  // namespace coppice::cli
