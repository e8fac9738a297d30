#include "coppice/train/run_directory.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kRemoved = ".removed";
constexpr size_t kDigits = 8;

std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix) || name.size() < kPrefix.size() + kDigits) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
  return parsed.ec == std::errc{} && parsed.ptr == end ? std::optional(step) : std::nullopt;
}

std::string step_name(int64_t step) {
  std::string digits = std::to_string(step);
  digits.insert(0, kDigits - std::min(kDigits, digits.size()), '0');
  return cat(kPrefix, digits);
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

std::vector<int64_t> checkpoint_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void prune_checkpoints(const fs::path& run, const KeepPolicy& keep) {
  const auto steps = checkpoint_steps(run);
  for (size_t i = 0; i + static_cast<size_t>(keep.last) < steps.size(); ++i) {
    if (keep.every > 0 && steps[i] % keep.every == 0) continue;
    if (std::ranges::find(keep.steps, steps[i]) != keep.steps.end()) continue;
    const fs::path path = checkpoint_path(run, steps[i]);
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
