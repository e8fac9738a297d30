#include "coppice/train/run_checks.h"

#include <filesystem>
#include <map>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/train/unused_options.h"
#include "coppice/train/validation.h"

namespace coppice::train {

step::StepSettings step_settings(const TrainOptions& o, const RunSettings& run, const families::ModelConfig& config) {
  if (o.z_coef > 0 && !config.is_moe()) {
    throw Error(ErrorCode::kUsage, cat("balance.z_coef: ", o.z_coef, " for a model without routers (set it to 0)"));
  }
  const step::BalanceKind balance = step::balance_kind(o.balance, config);
  check_used(o, balance);
  return {.batch = run.batch,
          .micro_batch = o.micro_batch,
          .schedule = run.schedule,
          .adamw = {.beta1 = o.beta1, .beta2 = o.beta2, .epsilon = o.epsilon, .weight_decay = o.weight_decay},
          .clip = o.clip,
          .balance = balance,
          .balance_rate = o.balance_rate,
          .recentre = o.recentre,
          .aux_coef = step::aux_coefficient(o.aux_coef, config),
          .z_coef = o.z_coef,
          .balance_form = step::balance_form(o.balance_form),
          .recompute = o.recompute,
          .lineage = {},
          .waking = {}};
}

void check_model_and_data(const TrainOptions& options, const RunSettings& settings, const Start& start,
                          const std::vector<data::TokenFile>& train_files,
                          const std::vector<data::TokenFile>& validation_files) {
  const auto& config = start.model.config();
  if (options.sequence_length > config.max_positions) {
    throw Error(ErrorCode::kUsage, cat("data.sequence_length: ", options.sequence_length, " is more than the ",
                                       config.max_positions, " positions of the model"));
  }
  if (!start.resumed && start.position.step >= settings.last_step) {
    throw Error(ErrorCode::kUsage, cat("train.steps: the checkpoint is at step ", start.position.step,
                                       " and the run would end at ", settings.last_step, " (give more steps)"));
  }
  for (const auto* files : {&train_files, &validation_files}) {
    if (files == &train_files && options.random_tokens) continue;
    for (const auto& file : *files) file.check_vocabulary(config.vocab_size, start.tokenizer_digest);
  }
  std::map<std::string, std::filesystem::path> stems;
  for (const auto& file : validation_files) {
    if (file.num_tokens() < 2) {
      throw Error(ErrorCode::kUsage, cat("data.validation: ", file.path(), ": ", file.num_tokens(),
                                         " tokens; wanted 2 or more to predict one"));
    }
    const auto [twin, is_new] = stems.emplace(stem(file), file.path());
    if (!is_new) {
      throw Error(ErrorCode::kUsage, cat("data.validation: ", twin->second, " and ", file.path(),
                                         " have the same name, so their metrics would too (rename one)"));
    }
  }
}

void check_auxiliary_loss(const Start& start, const step::StepSettings& step) {
  if (step.balance != step::BalanceKind::kAux) return;
  if (start.resumed) check_same_auxiliary_loss(*start.resumed, step.aux_coef);
  if (step.aux_coef > 0) return;
  log_warning("balance.aux_coef: 0, so nothing balances the experts (set it, or set balance.kind to none)");
}

void check_ranks(const RunSettings& settings, int64_t ranks) {
  if (settings.batch % ranks == 0) return;
  throw Error(ErrorCode::kUsage, cat("train.batch_tokens: ", settings.batch, " sequences for ", ranks,
                                     " ranks; wanted the same number for each (a multiple of ", ranks, ")"));
}

}  // namespace coppice::train
