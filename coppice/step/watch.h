#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/step/train_step.h"

namespace coppice::step {

/// A problem in a step that its loss may not show.
struct Warning {
  std::string event;    ///< name in metrics.jsonl
  std::string message;  ///< what was found and what to do
  Json fields;
};

/// Checks every step for exploding gradients and dead experts.
class Watch {
 public:
  /// An expert is dead after `dead_after` steps without a token; 0: never. A gradient norm above `spike_limit` times
  /// the recent median stops the run; 0: never.
  Watch(int64_t dead_after, double spike_limit) : dead_after_(dead_after), spike_limit_(spike_limit) {}

  /// The largest allowed gradient norm of the next step; 0: no limit.
  double gradient_limit() const { return spike_limit_ * median_norm(); }
  /// A warning for each spike, and one for each dead expert when it becomes dead.
  std::vector<Warning> look(int64_t step, const StepReport& report);
  /// Forgets the counts of experts, after an expansion.
  void forget_experts() { idle_.clear(); }

  /// The state that is saved in checkpoints: {"grad_norms": [...], "idle": {layer: [steps without a token, by
  /// expert]}}.
  Json memory() const;
  /// Restores a saved state for a model with `config`.
  ///
  /// Throws   Error{kFormat} if it is not such a state.
  void restore(const Json& memory, const families::ModelConfig& config);

 private:
  double median_norm() const;  // median of the last steps; 0 before there are enough

  int64_t dead_after_;
  double spike_limit_;
  std::vector<double> norms_;                     // gradient norms of the last steps
  std::map<int64_t, std::vector<int64_t>> idle_;  // by layer: steps without a token, [E]
};

}  // namespace coppice::step
