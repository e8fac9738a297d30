#include "coppice/step/position.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace coppice::step {

int64_t Position::wake_steps_left() const {
  return wake_steps == 0 ? 0 : std::max<int64_t>(0, grown_at + wake_steps - released - step);
}

double Position::recent_loss() const {
  if (recent_losses.empty()) return std::numeric_limits<double>::quiet_NaN();
  return std::accumulate(recent_losses.begin(), recent_losses.end(), 0.0) / static_cast<double>(recent_losses.size());
}

}  // namespace coppice::step
