#pragma once

#include <filesystem>

#include "coppice/save/trainer_state.h"
#include "coppice/train/run_settings.h"

namespace coppice::train {

/// Checks that a run with these settings can reach the position in a checkpoint: its step is that of the directory's
/// name, the number of expansions is that of the stages before the step, the handover belongs to the newest expansion,
/// and a run that began at step 0 has read the windows and tokens of its steps.
///
/// Throws   Error{kFormat} naming file and key.
void check_position(const std::filesystem::path& checkpoint, const save::TrainerState& state,
                    const RunSettings& settings);

}  // namespace coppice::train
