#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "coppice/io/output_place.h"

namespace coppice::train {

/// What lies in the folder of a run beside its checkpoints and growths.
inline constexpr std::string_view kSettingsFile = "config.toml", kMetricsFile = "metrics.jsonl",
                                  kEventsPrefix = "events.out.tfevents.";

/// The folder of the checkpoint after `step`: RUN/checkpoints/step-00001000.
std::filesystem::path checkpoint_path(const std::filesystem::path& run, int64_t step);

/// The folder of a run, held until the object ends, so that two processes never write one run.
///
/// Throws   Error{kIo} naming the folder if another process trains in it.
io::DirectoryLock hold_run(const std::filesystem::path& run);

/// Steps of the complete checkpoints of a run, rising; empty if there are none. A folder counts if its name is that of
/// checkpoint_path and it has a trainer/trainer.json.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& run);

/// Nothing lies where a run that goes on after step `last` will put its checkpoints.
///
/// Throws   Error{kFormat} naming a folder with the name of a checkpoint that is none.
void check_checkpoints_after(const std::filesystem::path& run, int64_t last);

/// A new run with these `settings` (the text of its config.toml) replaces no file but of a run with the same settings
/// that ended before its first checkpoint.
///
/// Throws   Error{kUsage} naming the files.
void check_new_run(const std::filesystem::path& run, std::string_view settings);

/// Which checkpoints of a run stay.
struct KeepPolicy {
  int64_t last = 1;            ///< the newest
  int64_t every = 0;           ///< those at its multiples; 0: none
  std::vector<int64_t> steps;  ///< these, whatever their age
};

/// Removes all checkpoints but those that `keep` names; each is renamed first, so that a half-removed one is never
/// taken for a checkpoint. Only folders whose trainer.json is of the step that their name says are removed.
///
/// Throws   Error{kIo}.
void prune_checkpoints(const std::filesystem::path& run, const KeepPolicy& keep);

/// The folder of what decided a growth after `step`: RUN/growth-step-00001000.
std::filesystem::path growth_path(const std::filesystem::path& run, int64_t step);

/// Removes what killed processes left half-written or half-removed: RUN/checkpoints/.step-*.
void remove_unfinished(const std::filesystem::path& run);

}  // namespace coppice::train
