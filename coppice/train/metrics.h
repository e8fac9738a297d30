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

/// metrics.jsonl and TensorBoard events of a run: one line a step, and lines {"event": ...} for what happens between
/// steps.
class MetricsLog {
 public:
  /// Starts anew, or, `resumed_at` a step, first cuts back to the lines up to it.
  ///
  /// Throws   Error{kIo}; Error{kFormat} naming the line that is no JSON (a line cut short by a crash, the last one, is
  ///          dropped).
  MetricsLog(const std::filesystem::path& run, std::optional<int64_t> resumed_at);

  /// A line {"step": ..., tag: value, ...}; on disk when it returns (as far as the kernel). Throws Error{kIo}.
  void step(int64_t step, std::span<const Scalar> values);
  /// A line {"event": `name`, "step": ..., and the members of `fields`}.
  void event(std::string_view name, int64_t step, const Json& fields = Json::object());

 private:
  void write_line(const Json& line);

  std::filesystem::path path_;
  std::ofstream file_;
  EventWriter events_;
};

}  // namespace coppice::train
