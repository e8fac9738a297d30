#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace coppice::train {

/// The folder of the checkpoint after `step`: RUN/checkpoints/step-00001000.
std::filesystem::path checkpoint_path(const std::filesystem::path& run, int64_t step);

/// Steps of the complete checkpoints of a run, rising; empty if there are none.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& run);

/// Which checkpoints of a run stay.
struct KeepPolicy {
  int64_t last = 1;            ///< the newest
  int64_t every = 0;           ///< those at its multiples; 0: none
  std::vector<int64_t> steps;  ///< these, whatever their age
};

/// Removes all checkpoints but those that `keep` names; each is renamed first, so that a half-removed one is never
/// taken for a checkpoint.
///
/// Throws   Error{kIo}.
void prune_checkpoints(const std::filesystem::path& run, const KeepPolicy& keep);

/// The folder of what decided a growth after `step`: RUN/growth-step-00001000.
std::filesystem::path growth_path(const std::filesystem::path& run, int64_t step);

/// Removes what killed processes left half-written or half-removed: RUN/checkpoints/.step-*.
void remove_unfinished(const std::filesystem::path& run);

}  // namespace coppice::train
