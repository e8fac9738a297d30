#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "coppice/io/output_place.h"

namespace coppice::train {

/// Files in the directory of a run besides checkpoints and expansions.
inline constexpr std::string_view kSettingsFile = "config.toml", kMetricsFile = "metrics.jsonl",
                                  kEventsPrefix = "events.out.tfevents.";

/// The directory of the checkpoint after `step`: RUN/checkpoints/step-00001000.
std::filesystem::path checkpoint_path(const std::filesystem::path& run, int64_t step);

/// Locks the directory of a run until the object is destroyed, so that two processes never write the same run.
///
/// Throws   Error{kIo} naming the directory if another process trains in it.
io::DirectoryLock hold_run(const std::filesystem::path& run);

/// The steps of the complete checkpoints of a run in rising order. A directory counts if checkpoint_path gives its name
/// and it has a trainer/trainer.json.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& run);

/// Checks that nothing is in the way of the checkpoints of a run that continues after step `last`.
///
/// Throws   Error{kFormat} naming a directory that has the name of a checkpoint but is none.
void check_checkpoints_after(const std::filesystem::path& run, int64_t last);

/// Checks that a new run replaces no files. Files of a run with the same `settings` (the text of its config.toml) that
/// ended before its first checkpoint may be replaced.
///
/// Throws   Error{kUsage} naming the files.
void check_new_run(const std::filesystem::path& run, std::string_view settings);

/// Which checkpoints of a run are kept.
struct KeepPolicy {
  int64_t last = 1;            ///< number of newest checkpoints
  int64_t every = 0;           ///< checkpoints at multiples of this step; 0: none
  std::vector<int64_t> steps;  ///< checkpoints of these steps
};

/// Removes all checkpoints that `keep` does not keep. Each is renamed first, so that a half-removed one is never taken
/// for a checkpoint. Only directories whose trainer.json has the step of their name are removed.
///
/// Throws   Error{kIo}.
void prune_checkpoints(const std::filesystem::path& run, const KeepPolicy& keep);

/// The directory with plan and scores of an expansion after `step`: RUN/growth-step-00001000.
std::filesystem::path growth_path(const std::filesystem::path& run, int64_t step);

/// Removes checkpoints that killed processes left half-written or half-removed: RUN/checkpoints/.step-*.
void remove_unfinished(const std::filesystem::path& run);

}  // namespace coppice::train
