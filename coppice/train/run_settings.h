#pragma once

#include <cstdint>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/step/schedule.h"
#include "coppice/train/growth_stage.h"
#include "coppice/train/handover.h"
#include "coppice/train/options.h"
#include "coppice/train/trainer_state.h"

namespace coppice::train {

/// What the options come to, checked.
struct RunSettings {
  int64_t steps = 0;      ///< of the whole schedule
  int64_t last_step = 0;  ///< where this process stops
  int64_t batch = 0;      ///< sequences an optimizer step
  step::Schedule schedule;
  std::vector<GrowthStage> stages;
  Handover handover;
};

/// Throws   Error{kUsage} naming the option: missing, out of range, or at odds with another.
RunSettings check_options(const TrainOptions& options);

/// The options that decide which losses a run gives, by name: all but those on how often, where and on how many
/// threads. What a default or train.tokens comes to stands as the number: train.steps, schedule.warmup.
Json identity(const TrainOptions& options);
/// The same of the training data: file name, tokens, documents; not where it lies.
Json identity(const std::vector<data::TokenFile>& files);
/// With the digest of every .bin too, as checkpoints have it.
Json identity_by_content(const std::vector<data::TokenFile>& files);

/// The options of a run that resumes: what their defaults came to in the run that wrote `saved` stays.
TrainOptions with_resolved(const TrainOptions& options, const TrainerState& saved);

/// Throws   Error{kUsage} naming every setting in which a resumed run differs from the one that wrote `saved`.
void check_same_run(const TrainerState& saved, const Json& settings, const Json& data);
/// A longer or shorter run is the same run where the learning rates of the steps done stay what they were.
///
/// Throws   Error{kUsage} naming the first step whose rate `schedule` changes.
void check_rates_behind(const TrainerState& saved, const step::Schedule& schedule);
/// For a run that is balanced by an auxiliary loss of this coefficient, whether given or the model's own.
///
/// Throws   Error{kUsage} if the run that wrote `saved` was told another.
void check_same_auxiliary_loss(const TrainerState& saved, double coefficient);

}  // namespace coppice::train
