#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

namespace coppice {

enum class ProgressUnit { kBytes, kItems, kSteps, kTokens };

/// How far a piece of work has come.
struct ProgressView {
  std::string_view label, note;
  uint64_t done = 0, total = 0;  ///< total 0: unknown
  ProgressUnit unit = ProgressUnit::kItems;
  double seconds = 0;
  bool bar = false;   ///< draw one
  bool last = false;  ///< the work has ended: show the time taken instead of the time left
};

/// The unit of a progress: "bytes", "items", "steps" or "tokens".
std::string_view unit_text(ProgressUnit unit);

/// A progress bar on stderr with rate and time left: redrawn in place on a terminal, otherwise a plain line every ten
/// seconds. Nothing is shown for work that ends within a second, or while an earlier bar exists, because the bar of the
/// outer job covers the jobs inside it. Off unless `main` has called `enable_progress(true)`.
///
/// Threads  advance() may be called from any thread.
class Progress {
 public:
  Progress(std::string label, uint64_t total, ProgressUnit unit);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(uint64_t amount);
  /// Text shown after the bar, such as "loss 3.21".
  void note(std::string text);

 private:
  void draw(bool last);
  ProgressView view(bool last) const;
  bool tell(bool last);

  std::mutex mutex_;
  std::string label_;
  std::string note_;
  uint64_t total_;
  uint64_t done_ = 0;
  ProgressUnit unit_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point drawn_;
  bool shown_ = false;
  bool outermost_;
};

void enable_progress(bool on);

/// Receives progress in place of stderr, from any thread, one call at a time: at most twenty times a second, and once
/// when the work ends. It must not throw.
using ProgressSink = std::function<void(const ProgressView&)>;

/// Replaces the sink; an empty one takes it away.
void set_progress_sink(ProgressSink sink);

namespace detail {

/// Locked while the log sink or a progress bar writes to stderr.
std::mutex& stderr_mutex();

/// Erases an unfinished progress bar from the terminal's line, so that other text can be written there; the bar is
/// redrawn at its next update. The caller holds stderr_mutex().
void wipe_bar();

std::string progress_text(const ProgressView& view);

}  // namespace detail
}  // namespace coppice
