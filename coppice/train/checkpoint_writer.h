#pragma once

#include <chrono>
#include <filesystem>
#include <future>
#include <optional>

#include "coppice/train/checkpoint.h"

namespace coppice::train {

/// Writes checkpoints in a thread of its own, from a copy of the state, while training continues.
///
/// Memory   the copy, while a checkpoint is being written: 12 bytes per parameter, on the host (pinned for a model of a
///          GPU); no second copy on the device.
/// Threads  one, besides those of training.
class CheckpointWriter {
 public:
  struct Written {
    std::filesystem::path path;
    int64_t step = 0;
    double seconds = 0;          ///< from the start until it was complete
    double blocked_seconds = 0;  ///< of these, the time that `write` took
  };

  /// Begins a checkpoint, after waiting for the one before. Without `background` it is complete on return, and nothing
  /// is copied.
  ///
  /// Throws   what writing the one before threw.
  void write(const std::filesystem::path& target, const nn::Decoder& model, const step::Optimizer& optimizer,
             const TrainerState& state, const Companions& companions, bool background);

  /// The checkpoint that was completed since the last call, if there is one; with `wait`, waits for the one being
  /// written.
  ///
  /// Throws   what writing it threw: Error{kIo} ...
  std::optional<Written> finished(bool wait);

 private:
  std::optional<Written> begun_;
  std::chrono::steady_clock::time_point start_;
  std::future<double> writing_;  // the seconds that it took
};

}  // namespace coppice::train
