#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string_view>

#include "coppice/base/json.h"
#include "coppice/train/tensorboard.h"

namespace coppice::train {

/// metrics.jsonl and TensorBoard events of a run: one line per step, one more where it was validated, and lines
/// {"event": ...} for what happens between steps.
class MetricsLog {
 public:
  /// Starts anew, or, `resumed_at` a step, first cuts back to the lines up to it. An expansion after that step is cut off
  /// too: the checkpoint is of the model before, and the run makes it again.
  ///
  /// Throws   Error{kIo}; Error{kFormat} naming the line that is no JSON (a line cut short by a crash, the last one, is
  ///          dropped).
  MetricsLog(const std::filesystem::path& run, std::optional<int64_t> resumed_at);

  /// A line {"step": ..., tag: value, ...}; on disk when it returns (as far as the kernel). Throws Error{kIo}.
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

}  // namespace coppice::train
