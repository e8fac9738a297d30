#pragma once

#include "coppice/families/model_config.h"
#include "coppice/step/balance.h"
#include "coppice/train/growth_stage.h"
#include "coppice/train/options.h"

namespace coppice::train {

/// Throws   Error{kUsage} naming a setting that was given and has no effect with the others.
void check_used(const TrainOptions& options);
/// The same for settings whose effect depends on how the model is balanced.
void check_used(const TrainOptions& options, step::BalanceKind balance);
/// The same for an expansion of a model with `config`; errors begin with `name`.
void check_used(const GrowthStage& stage, const families::ModelConfig& config, step::BalanceKind balance,
                std::string_view name);

}  // namespace coppice::train
