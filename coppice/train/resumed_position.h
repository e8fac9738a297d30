#pragma once

#include <filesystem>

#include "coppice/train/run_settings.h"
#include "coppice/train/trainer_state.h"

namespace coppice::train {

/// The position in a checkpoint is one that a run of these settings comes to: its step is that of the folder, the
/// growths behind it are the stages before that step, the handover is that of the newest, and a run that began at step 0
/// has read as many windows and tokens as its steps take.
///
/// Throws   Error{kFormat} naming file and key.
void check_position(const std::filesystem::path& checkpoint, const TrainerState& state, const RunSettings& settings);

}  // namespace coppice::train
