#pragma once

#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/step/train_step.h"
#include "coppice/train/options.h"
#include "coppice/train/run_settings.h"
#include "coppice/train/start.h"

namespace coppice::train {

/// The settings of every step of a run; those that change from step to step are not set.
///
/// Throws   Error{kUsage}: settings that the model has no use for.
step::StepSettings step_settings(const TrainOptions& options, const RunSettings& run,
                                 const families::ModelConfig& config);

/// Checks that the model and the data of a run fit its options.
///
/// Throws   Error{kUsage} naming the option; Error{kFormat} for data of another tokenizer.
void check_model_and_data(const TrainOptions& options, const RunSettings& settings, const Start& start,
                          const std::vector<data::TokenFile>& train_files,
                          const std::vector<data::TokenFile>& validation_files);

/// Checks that a run with an auxiliary loss has a coefficient for it, that of the run that it resumes.
///
/// Throws   Error{kUsage}.
void check_auxiliary_loss(const Start& start, const step::StepSettings& step);

/// Checks that the windows of a batch can be divided over `ranks`.
///
/// Throws   Error{kUsage}.
void check_ranks(const RunSettings& settings, int64_t ranks);

}  // namespace coppice::train
