#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"
#include "coppice/options/options.h"
#include "coppice/plan/growth_settings.h"
#include "coppice/step/balance.h"

namespace coppice::train {

/// One [[growth]] table of a run file: the options of the expansion, and how training continues afterwards.
struct GrowthStage : plan::GrowthSettings {
  int64_t at_step = -1;  ///< the model is expanded after this step
  int64_t score_batches = 10;
  bool scale_top_k = false;
  int64_t split = 1;
  int64_t rewarmup = 0;
  double lr = 0;
  double balance_rate = 0;
  int64_t balance_steps = 0;
  Given given;

  static constexpr auto fields() {
    using O = GrowthStage;
    return std::tuple{
        field("at_step", &O::at_step, "add experts after this step"),
        field("experts", &O::experts, "number of experts afterwards: 2x, 1.5x or 48"),
        field("score_batches", &O::score_batches,
              "number of the last batches whose gradients score the experts; 0: no scores"),
        field("recipe", &O::recipe, "a named set of options; options given here override it"),
        field("select", &O::select,
              "rule that chooses the experts to copy (default: waterfill; uniform if score_batches is 0)"),
        field("metric", &O::metric, "metric that the experts are scored by"),
        field("layer_selection", &O::layer_selection, "how the scores of an expert's two linear layers are combined"),
        field("temperature", &O::temperature, "temperature of weighted_sampling"),
        field("max_duplicates", &O::max_duplicates, "maximum number of new copies of one expert"),
        field("expert_init", &O::expert_init, "how the weights of a new expert are made from its parent's"),
        field("router_init", &O::router_init, "how the router row of a new expert is made from its parent's"),
        field("optimizer_state", &O::optimizer_state, "how Adam's moments of a new expert are made from its parent's"),
        field("balance_bias", &O::balance_bias, "selection bias of a new expert: copy (its parent's) or zero"),
        field("order", &O::order,
              "where new experts are placed: append (after all others) or siblings (after their parent)"),
        field("allow_regroup", &O::allow_regroup, "allow an expansion that moves experts to other router groups"),
        field("scale_top_k", &O::scale_top_k, "multiply top-K by the same factor as the number of experts"),
        field("split", &O::split, "cut each expert into N narrower ones instead of copying"),
        field("seed", &O::seed, "random seed (default: train.seed)"),
        field("rewarmup", &O::rewarmup, "steps of a new linear warm-up of the learning rate from 0"),
        field("lr", &O::lr, "peak learning rate from here on; 0: unchanged"),
        field("balance_rate", &O::balance_rate, "step size u of loss-free balancing during balance_steps"),
        field("balance_steps", &O::balance_steps, "number of steps with that balance_rate")};
  }

  /// The options for `expand` of a model with this routing, with the seed of the run if the stage has none.
  plan::GrowthOptions growth_options(const families::Routing& routing, uint64_t run_seed) const;
  /// Whether the rule that chooses the experts to copy uses scores.
  bool needs_scores() const;
};

/// The [[growth]] stages of a run in order, checked against each other and the run.
///
/// `tables` is an array of tables, or null for none; `steps` is the length of the run.
/// Throws   Error{kUsage} naming the stage and its key.
std::vector<GrowthStage> growth_stages(const Json& tables, int64_t steps);

/// Makes every stage's plan with equal scores, for a model of `config` as it will be at that stage, so that errors of a
/// stage are found before the first step.
///
/// Throws   Error{kUsage, kUnsupported} naming the stage.
void check_stages(std::span<const GrowthStage> stages, const families::ModelConfig& config, uint64_t run_seed,
                  step::BalanceKind balance);

}  // namespace coppice::train
