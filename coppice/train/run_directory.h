#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace coppice::train {

/// The folder of the checkpoint after `step`: RUN/checkpoints/step-00001000.
std::filesystem::path checkpoint_path(const std::filesystem::path& run, int64_t step);

/// Steps of the complete checkpoints of a run, rising; empty if there are none.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& run);

/// Removes all checkpoints but the `keep_last` newest and, if `keep_every` > 0, those at its multiples; each is renamed
/// first, so that a half-removed one is never taken for a checkpoint.
///
/// Throws   Error{kIo}.
void prune_checkpoints(const std::filesystem::path& run, int64_t keep_last, int64_t keep_every);

/// Removes what killed processes left half-written or half-removed: RUN/checkpoints/.step-*.
void remove_unfinished(const std::filesystem::path& run);

}  // namespace coppice::train
