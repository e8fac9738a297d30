#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/step/train_step.h"

namespace coppice::step {

/// Something that a step shows and that may go unnoticed in its loss.
struct Warning {
  std::string event;    ///< name in metrics.jsonl
  std::string message;  ///< what was found and what to do
  Json fields;
};

/// Looks at every step for exploding gradients and dead experts.
class Watch {
 public:
  /// `dead_after` steps without a token make an expert dead; 0: none is. A gradient norm above `spike_limit` times the
  /// recent median stops the run; 0: none does.
  Watch(int64_t dead_after, double spike_limit) : dead_after_(dead_after), spike_limit_(spike_limit) {}

  /// The largest norm that the next step may have; 0: any.
  double gradient_limit() const { return spike_limit_ * median_norm(); }
  /// Each spike; each dead expert once, when it has been without tokens for so long.
  std::vector<Warning> look(int64_t step, const StepReport& report);
  /// The experts are others now.
  void forget_experts() { idle_.clear(); }

  /// What it remembers of the steps so far: {"grad_norms": [...], "idle": {layer: [steps without a token, by expert]}}.
  Json memory() const;
  /// Goes on from that of a model of `config`.
  ///
  /// Throws   Error{kFormat} where it is no such memory.
  void restore(const Json& memory, const families::ModelConfig& config);

 private:
  double median_norm() const;  // of the last steps; 0 before there are enough

  int64_t dead_after_;
  double spike_limit_;
  std::vector<double> norms_;                     // of the last steps
  std::map<int64_t, std::vector<int64_t>> idle_;  // by layer: steps without a token, [E]
};

}  // namespace coppice::step
