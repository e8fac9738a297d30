#include "coppice/train/run_directory.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/model_directory.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kRemoved = ".removed";
constexpr size_t kDigits = 8;

std::string step_name(int64_t step) {
  std::string digits = std::to_string(step);
  digits.insert(0, kDigits - std::min(kDigits, digits.size()), '0');
  return cat(kPrefix, digits);
}

/// The step for which step_name() gives `name`.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  return parsed.ec == std::errc{} && step >= 0 && step_name(step) == name ? std::optional(step) : std::nullopt;
}

fs::path state_file(const fs::path& checkpoint) { return checkpoint / io::kTrainerFolder / io::kTrainerFile; }

bool is_checkpoint(const fs::path& path) {
  std::error_code none;
  return fs::is_regular_file(state_file(path), none);
}

/// Whether `path` is surely the checkpoint of `step`.
bool is_checkpoint_of(const fs::path& path, int64_t step) {
  try {
    return is_checkpoint(path) && Json::read(state_file(path)).at("step").as_int() == step;
  } catch (const Error&) {
    return false;
  }
}

/// The steps of all entries whose name is that of a checkpoint.
std::vector<int64_t> named_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// ".step-00000010.tmp-123", ".step-00000010.removed": a checkpoint that was being written or removed.
bool is_unfinished(const std::string& name) {
  const size_t dot = name.find('.', 1);
  if (!name.starts_with('.') || dot == std::string::npos || !step_of(name.substr(1, dot - 1))) return false;
  const std::string_view end = std::string_view(name).substr(dot);
  return end == kRemoved || end.starts_with(".tmp-");
}

void check(const fs::path& path, const std::error_code& error) {
  if (error) throw Error(ErrorCode::kIo, cat(path, ": cannot be removed: ", error.message()));
}

}  // namespace

fs::path checkpoint_path(const fs::path& run, int64_t step) { return run / "checkpoints" / step_name(step); }

fs::path growth_path(const fs::path& run, int64_t step) { return run / cat("growth-", step_name(step)); }

io::DirectoryLock hold_run(const fs::path& run) {
  if (auto lock = io::DirectoryLock::take(run)) return std::move(*lock);
  throw Error(ErrorCode::kIo,
              cat("train.out: ", run,
                  ": another process trains in this directory (wait for it to end, or choose another directory)"));
}

std::vector<int64_t> checkpoint_steps(const fs::path& run) {
  auto steps = named_steps(run);
  std::erase_if(steps, [&](int64_t step) { return !is_checkpoint(checkpoint_path(run, step)); });
  return steps;
}

void check_checkpoints_after(const fs::path& run, int64_t last) {
  for (const int64_t step : named_steps(run)) {
    const fs::path path = checkpoint_path(run, step);
    if (step <= last || is_checkpoint(path)) continue;
    throw Error(ErrorCode::kFormat,
                cat(path, ": is not a checkpoint, because it has no ", io::kTrainerFolder, "/", io::kTrainerFile,
                    ", but the run will write a checkpoint with this name (remove it, or move it elsewhere)"));
  }
}

void check_new_run(const fs::path& run, std::string_view settings) {
  std::vector<std::string> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run, none)) {
    const std::string name = entry.path().filename().string();
    if (name == kSettingsFile || name == kMetricsFile || name.starts_with(kEventsPrefix)) found.push_back(name);
  }
  if (found.empty()) return;
  const fs::path before = run / kSettingsFile;
  if (fs::is_regular_file(before, none) && read_file(before) == settings) return;
  std::ranges::sort(found);
  throw Error(ErrorCode::kUsage,
              cat("train.out: ", run, " holds ", join_some(found, 3),
                  ", which a new run would replace (choose another directory, or remove these files)"));
}

void prune_checkpoints(const fs::path& run, const KeepPolicy& keep) {
  const auto steps = checkpoint_steps(run);
  for (size_t i = 0; i + static_cast<size_t>(keep.last) < steps.size(); ++i) {
    if (keep.every > 0 && steps[i] % keep.every == 0) continue;
    if (std::ranges::find(keep.steps, steps[i]) != keep.steps.end()) continue;
    const fs::path path = checkpoint_path(run, steps[i]);
    if (!is_checkpoint_of(path, steps[i])) continue;
    const fs::path doomed = path.parent_path() / cat(".", path.filename(), kRemoved);
    std::error_code error;
    fs::rename(path, doomed, error);
    check(path, error);
    fs::remove_all(doomed, error);
    check(doomed, error);
  }
}

void remove_unfinished(const fs::path& run) {
  std::error_code none, error;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    if (!is_unfinished(entry.path().filename().string())) continue;
    fs::remove_all(entry.path(), error);
    check(entry.path(), error);
  }
}

}  // namespace coppice::train
