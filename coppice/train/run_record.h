#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "coppice/train/metrics.h"

namespace coppice::train {

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
