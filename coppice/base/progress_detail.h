#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "coppice/base/progress.h"

namespace coppice::detail {

/// Held by whoever writes to stderr: the log sink and progress bars.
std::mutex& stderr_mutex();

/// Takes an unfinished progress bar off the terminal's line, so that something else can be written there; it is redrawn
/// at its next turn. The caller holds stderr_mutex().
void wipe_bar();

/// What a progress line says.
struct ProgressView {
  std::string_view label, note;
  uint64_t done = 0, total = 0;  ///< total 0: unknown
  ProgressUnit unit = ProgressUnit::kItems;
  double seconds = 0;
  bool bar = false;   ///< draw one
  bool last = false;  ///< the work has ended: time taken instead of time left
};
std::string progress_text(const ProgressView& view);

}  // namespace coppice::detail
