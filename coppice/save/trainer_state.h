#pragma once

#include <filesystem>
#include <string_view>

#include "coppice/base/json.h"
#include "coppice/step/position.h"

namespace coppice::save {

/// trainer.json: {"coppice_trainer": 1, "step", "next_sample", "tokens_seen", "growths", "grown_at",
/// "released", "wake_steps", "expert_counts", "recent_losses", "settings": {flat
/// option: value}, "data": [...], "watch": {...}}.
struct TrainerState {
  step::Position position;
  Json settings, data;  ///< what a resumed run must share (run_settings.h)
  Json watch;           ///< Watch::memory; null in files of 0.1.0

  Json to_json() const;
  /// Throws   Error{kFormat} naming file and key; Error{kNotFound}.
  static TrainerState read(const std::filesystem::path& checkpoint);
  static TrainerState from_json(const Json& json, std::string_view source);  // Throws Error{kFormat}
};

}  // namespace coppice::save
