#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace coppice::step {

/// Where a run stands between two steps. With the settings it fixes all that follows; no generator has a state of its
/// own.
struct Position {
  int64_t step = 0;          ///< updates done
  uint64_t next_sample = 0;  ///< of the sampler
  uint64_t tokens_seen = 0;
  int64_t growths = 0;     ///< of the run's stages, done
  int64_t grown_at = -1;   ///< step of the newest growth that a handover counts from; -1: none
  int64_t released = 0;    ///< steps of its handover that another run made before `grown_at`
  int64_t wake_steps = 0;  ///< of the handover in which its dormant copies wake; 0: none sleep
  /// How often each expert was chosen in the last step's batch, by MoE layer: what the auxiliary loss of the
  /// next step expects of micro-batches to come. Empty without one, and after a growth.
  std::map<int64_t, std::vector<int64_t>> expert_counts;
  std::vector<double> recent_losses;  ///< of the last kRecentLosses steps, oldest first

  static constexpr size_t kRecentLosses = 10;
  /// In which dormant copies still wake; 0: none sleep.
  int64_t wake_steps_left() const;
  double recent_loss() const;  ///< their mean; NaN before the first step
};

}  // namespace coppice::step
