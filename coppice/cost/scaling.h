#pragma once

#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/cost/options.h"
#include "coppice/cost/simulate.h"
#include "coppice/cost/traffic.h"

namespace coppice::cost {

/// Simulated steps on one number of GPUs, with E and with N experts.
struct ScalingRow {
  int64_t gpus = 0;
  int64_t expert_parallel_before = 1, expert_parallel_after = 1;
  double tokens = 0;  ///< of one GPU in one step
  Traffic traffic_before, traffic_after;
  SimulatedStep before, after;
  uint64_t state_before = 0, state_after = 0;  ///< bytes of one GPU without activations

  double ratio() const { return after.total_s / before.total_s; }
};

struct Scaling {
  Cluster cluster;
  double memory_bytes = 0;       ///< of one GPU; 0 if it is not known
  std::vector<ScalingRow> rows;  ///< one for each of --gpus

  /// What the difference between N and E consists of, and whether the training state fits, for each row.
  std::vector<std::string> reasons(int64_t experts_before, int64_t experts_after) const;
  std::string to_text(int64_t experts_before, int64_t experts_after) const;
  Json to_json() const;

 private:
  bool fits(uint64_t state) const { return memory_bytes == 0 || static_cast<double>(state) <= memory_bytes; }
};

/// The ranks of `options` on `gpus` GPUs; with `is_after` those of the model with N experts.
Parallelism parallelism_of(const CostOptions& options, int64_t gpus, bool is_after);

/// Simulates a step of both models for each of --gpus (without it, for --data-parallel ranks) on --cluster.
///
/// Throws   Error{kUsage} as check_parallelism and simulate_step do.
Scaling simulate_scaling(const ModelSize& before, const ModelSize& after, const Device& device,
                         const CostOptions& options);

}  // namespace coppice::cost
