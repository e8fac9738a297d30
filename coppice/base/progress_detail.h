#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "coppice/base/progress.h"

namespace coppice::detail {

/// Locked while the log sink or a progress bar writes to stderr.
std::mutex& stderr_mutex();

/// Erases an unfinished progress bar from the terminal's line, so that other text can be written there; the bar is
/// redrawn at its next update. The caller holds stderr_mutex().
void wipe_bar();

/// The contents of a progress line.
struct ProgressView {
  std::string_view label, note;
  uint64_t done = 0, total = 0;  ///< total 0: unknown
  ProgressUnit unit = ProgressUnit::kItems;
  double seconds = 0;
  bool bar = false;   ///< draw one
  bool last = false;  ///< the work has ended: show the time taken instead of the time left
};
std::string progress_text(const ProgressView& view);

}  // namespace coppice::detail
