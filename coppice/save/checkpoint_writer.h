#pragma once

#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <thread>

#include "coppice/save/checkpoint.h"
#include "coppice/save/shared_checkpoint.h"

namespace coppice::save {

/// Writes checkpoints in a thread of its own, from a copy of the state, while training continues.
///
/// Memory   the copy, while a checkpoint is being written: 12 bytes per parameter that this rank writes, on the host
///          (pinned for a model of a GPU); no second copy on the device.
/// Ranks    both calls are collective over those of the model's division.
/// Threads  one, besides those of training.
class CheckpointWriter {
 public:
  struct Written {
    std::filesystem::path path;
    int64_t step = 0;
    double seconds = 0;          ///< from the start until it was complete
    double blocked_seconds = 0;  ///< of these, the time that `write` took
  };

  /// Begins a checkpoint; the one before must be finished. Without `background` its tensors are on the disk on return,
  /// and on one rank nothing is copied.
  void write(const std::filesystem::path& target, const nn::Decoder& model, const step::Optimizer& optimizer,
             const TrainerState& state, const Companions& companions, bool background);

  /// The checkpoint that was completed since the last call, if there is one; with `wait`, waits for the one being
  /// written.
  ///
  /// Throws   what writing it threw: Error{kIo} ...
  std::optional<Written> finished(bool wait);

 private:
  bool is_ready(bool wait) const;  // on every rank

  std::optional<Written> begun_;
  std::chrono::steady_clock::time_point start_;
  nn::Division division_;  // of the model that is written
  std::shared_ptr<SharedCheckpoint> shared_;
  std::future<double> writing_;  // the seconds that it took
  std::jthread thread_;
};

}  // namespace coppice::save
