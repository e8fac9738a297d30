#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace coppice {

enum class ProgressUnit { kBytes, kItems, kSteps, kTokens };

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

}  // namespace coppice
