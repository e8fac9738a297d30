#include "coppice/train/unused_options.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::train {

namespace {

// A run that is stopped and resumed, or expanded, also leaves checkpoints at other steps.
bool writes_once(const TrainOptions& o) {
  return !o.out.empty() && o.checkpoint_every == 0 && o.stop_at == 0 && !o.resume && o.growth.is_null();
}

}  // namespace

void check_used(const TrainOptions& o) {
  refuse_without_effect(
      o.given,
      {{!o.model_path.empty(),
        "model.path determines it",
        {"model.family", "model.vocab_size", "model.dim", "model.layers", "model.heads", "model.kv_heads",
         "model.head_dim", "model.experts", "model.top_k", "model.expert_width", "model.dense_width",
         "model.shared_width", "model.first_dense_layers"}},
       {o.data_validation.empty(),
        "data.validation is empty",
        {"train.validate_every", "train.validation_tokens"},
        true},
       {o.schedule != "wsd", cat("schedule.kind is ", o.schedule), {"schedule.anneal_share"}},
       {o.schedule == "wsd" && o.anneal_share == 0, "schedule.anneal_share is 0", {"schedule.min_lr_ratio"}},
       {writes_once(o), "checkpoint.every is 0, so the only checkpoint is at the end", {"checkpoint.keep_every"}},
       {o.schedule == "constant", "schedule.kind is constant", {"schedule.min_lr_ratio"}},
       {o.out.empty(), "nothing is written without train.out", {"checkpoint.keep_last", "checkpoint.beside"}}},
      "");
}

void check_used(const TrainOptions& o, step::BalanceKind balance) {
  const std::string reason = cat("balancing is ", step::balance_name(balance));
  refuse_without_effect(o.given,
                        {{balance != step::BalanceKind::kLossFree, reason, {"balance.rate", "balance.recentre"}},
                         {balance != step::BalanceKind::kAux, reason, {"balance.aux_coef", "balance.form"}}},
                        "");
}

void check_used(const GrowthStage& stage, const families::ModelConfig& config, step::BalanceKind balance,
                std::string_view name) {
  const std::string select = stage.rule().value_or(stage.needs_scores() ? "waterfill" : "uniform");
  const std::string rule = cat("the rule '", select, "' ");
  try {
    refuse_without_effect(
        stage.given,
        {{!stage.needs_scores(), rule + "does not use scores", {"metric", "layer_selection"}},
         {!stage.needs_scores() && stage.score_batches > 0, rule + "does not use scores", {"score_batches"}},
         {select != "weighted_sampling", rule + "does not sample", {"temperature"}},
         {select == "uniform", rule + "gives every expert the same number of copies", {"max_duplicates"}},
         {balance != step::BalanceKind::kLossFree,
          cat("balancing is ", step::balance_name(balance)),
          {"balance_rate", "balance_steps"}},
         {!config.routing.has_selection_bias, "the model has no selection bias", {"balance_bias"}}},
        "");
  } catch (const Error& error) {
    throw Error(error.code, cat(name, ": ", error.what()));
  }
}

}  // namespace coppice::train
