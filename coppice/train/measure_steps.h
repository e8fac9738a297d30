#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coppice/families/model_config.h"

namespace coppice::train {

struct MeasureSettings {
  std::set<int64_t> experts;  ///< the numbers of experts to time, at least two
  int64_t batch_tokens = 2048, sequence_length = 256;
  int64_t steps = 5;  ///< timed in each round, after two that do not count
  std::string dtype = "bf16";
  std::string device = "auto";  ///< as nn::compute_device takes it
  size_t threads = 1;
};

/// Seconds per training step for each number of experts, measured with random weights of the model's shape and random
/// tokens. All numbers are timed in each of four rounds; the result is the smallest of the four medians. Nothing is
/// written.
///
/// Throws   Error{kUnsupported} for a family that coppice does not train; Error{kUsage} for sizes that the trainer does
///          not accept; Error{kIo} if the largest model does not fit into free memory.
std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                      const MeasureSettings& settings);

}  // namespace coppice::train
