#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "coppice/base/json.h"
#include "coppice/train/tensorboard.h"

namespace coppice::train {

/// metrics.jsonl and TensorBoard events of a run: one line per step, one more if it was validated, and lines {"event":
/// ...} for events between steps.
class MetricsLog {
 public:
  /// Starts a new log or, if `resumed_at` is set, first removes the lines after that step. That includes an expansion
  /// directly after the step, because the checkpoint is of the model before it and the run repeats it.
  ///
  /// Throws   Error{kIo}; Error{kFormat} naming a line that is not JSON (an incomplete last line, from a crash, is
  ///          dropped).
  MetricsLog(const std::filesystem::path& run, std::optional<int64_t> resumed_at);

  /// A line {"step": ..., tag: value, ...}; passed to the kernel when it returns. Throws Error{kIo}.
  void step(int64_t step, std::span<const Scalar> values);
  /// Whether the step that the run was resumed at has its validation.
  bool resumed_with_validation() const { return resumed_with_validation_; }
  /// A line {"event": `name`, "step": ..., and the members of `fields`}.
  void event(std::string_view name, int64_t step, const Json& fields = Json::object());

 private:
  void write_line(const Json& line);

  std::filesystem::path path_;
  bool resumed_with_validation_ = false;
  std::ofstream file_;
  EventWriter events_;
};

/// What a run tells about itself: metrics.jsonl and TensorBoard events. A run without a directory, and every rank but the
/// first, tells nothing.
class RunRecord {
 public:
  RunRecord() = default;  ///< tells nothing
  explicit RunRecord(std::unique_ptr<MetricsLog> log) : log_(std::move(log)) {}

  bool is_kept() const { return log_ != nullptr; }
  bool resumed_with_validation() const { return log_ && log_->resumed_with_validation(); }
  void step(int64_t step, std::span<const Scalar> values) {
    if (log_) log_->step(step, values);
  }
  void event(std::string_view name, int64_t step, const Json& fields = Json::object()) {
    if (log_) log_->event(name, step, fields);
  }

 private:
  std::unique_ptr<MetricsLog> log_;
};

}  // namespace coppice::train
