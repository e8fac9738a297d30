#pragma once

#include <chrono>
#include <filesystem>
#include <future>
#include <optional>

#include "coppice/train/checkpoint.h"

namespace coppice::train {

/// Writes checkpoints beside training: from a copy of the state, in a thread of its own.
///
/// Memory   that copy while one is being written: 12 bytes a parameter.
/// Threads  one, beside those that train.
class CheckpointWriter {
 public:
  struct Written {
    std::filesystem::path path;
    int64_t step = 0;
    double seconds = 0;          ///< from the start to its appearance
    double blocked_seconds = 0;  ///< of these, how long `write` took
  };

  /// Begins a checkpoint; waits for the one before. Without `background` it is complete on return, and nothing is
  /// copied.
  ///
  /// Throws   what writing the one before threw.
  void write(const std::filesystem::path& target, const nn::Decoder& model, const step::Optimizer& optimizer,
             const TrainerState& state, const Companions& companions, bool background);

  /// The checkpoint that has appeared since the last call, if one has; with `wait`, the one that is being written.
  ///
  /// Throws   what writing it threw: Error{kIo} ...
  std::optional<Written> finished(bool wait);

 private:
  std::optional<Written> begun_;
  std::chrono::steady_clock::time_point start_;
  std::future<double> writing_;  // gives the seconds that it took
};

}  // namespace coppice::train
