#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace coppice::step {

/// The position of a run between two steps. Together with the settings it determines everything that follows; random
/// generators have no state.
struct Position {
  int64_t step = 0;          ///< updates done
  uint64_t next_sample = 0;  ///< next window of the sampler
  uint64_t tokens_seen = 0;
  int64_t growths = 0;     ///< number of the run's [[growth]] stages that are done
  int64_t grown_at = -1;   ///< step of the newest expansion, from which its handover counts; -1: none
  int64_t released = 0;    ///< steps of its handover that an earlier run made before `grown_at`
  int64_t wake_steps = 0;  ///< steps of the handover until dormant copies are awake; 0: none are dormant
  /// The number of times each expert was chosen in the last step's batch, by MoE layer; the auxiliary loss of the next
  /// step uses it for later micro-batches. Empty without an auxiliary loss, and after an expansion.
  std::map<int64_t, std::vector<int64_t>> expert_counts;
  std::vector<double> recent_losses;  ///< losses of the last kRecentLosses steps, oldest first

  static constexpr size_t kRecentLosses = 10;
  /// Steps until dormant copies are awake; 0: none are dormant.
  int64_t wake_steps_left() const;
  double recent_loss() const;  ///< mean of recent_losses; NaN before the first step
};

}  // namespace coppice::step
