#pragma once

#include <cstdint>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/save/trainer_state.h"
#include "coppice/step/schedule.h"
#include "coppice/train/growth_stage.h"
#include "coppice/train/handover.h"
#include "coppice/train/options.h"

namespace coppice::train {

/// The resolved and checked options.
struct RunSettings {
  int64_t steps = 0;      ///< length of the whole schedule
  int64_t last_step = 0;  ///< where this process stops
  int64_t batch = 0;      ///< sequences per optimizer step
  step::Schedule schedule;
  std::vector<GrowthStage> stages;
  Handover handover;
};

/// Throws   Error{kUsage} naming the option: missing, out of range, or in conflict with another.
RunSettings check_options(const TrainOptions& options);

/// The options that determine the losses of a run, by name: all except those about output, frequency and threads.
/// Defaults and train.tokens are resolved to numbers: train.steps, schedule.warmup.
Json identity(const TrainOptions& options);
/// The same for the training data: file name, tokens, documents; not its place.
Json identity(const std::vector<data::TokenFile>& files);
/// The same with the digest of every .bin, as in checkpoints.
Json identity_by_content(const std::vector<data::TokenFile>& files);

/// The options of a resumed run: defaults keep the values that they had in the run that wrote `saved`.
TrainOptions with_resolved(const TrainOptions& options, const save::TrainerState& saved);

/// Throws   Error{kUsage} naming every setting in which a resumed run differs from the one that wrote `saved`.
void check_same_run(const save::TrainerState& saved, const Json& settings, const Json& data);
/// Checks that a longer or shorter schedule has the same learning rates for the steps that are done.
///
/// Throws   Error{kUsage} naming the first step whose rate `schedule` changes.
void check_rates_behind(const save::TrainerState& saved, const step::Schedule& schedule);
/// For a run with an auxiliary loss with this coefficient, whether given or the model's own.
///
/// Throws   Error{kUsage} if the run that wrote `saved` had another.
void check_same_auxiliary_loss(const save::TrainerState& saved, double coefficient);

}  // namespace coppice::train
