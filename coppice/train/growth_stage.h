#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/base/options.h"
#include "coppice/families/model_config.h"
#include "coppice/plan/plan.h"
#include "coppice/step/balance.h"

namespace coppice::train {

/// One [[growth]] of a run file: what `expand` is told, and how training goes on afterwards.
struct GrowthStage {
  int64_t at_step = -1;  ///< the model grows after this step
  plan::ExpertCount experts;
  int64_t score_batches = 10;
  std::optional<std::string> select, metric, layer_selection, balance_bias, order;
  std::optional<double> temperature;
  std::optional<uint64_t> max_duplicates, seed;
  std::optional<methods::MethodChoice> expert_init, router_init, optimizer_state;
  bool allow_regroup = false, scale_top_k = false;
  int64_t split = 1;
  int64_t rewarmup = 0;
  double lr = 0;
  double balance_rate = 0;
  int64_t balance_steps = 0;
  Given given;

  static constexpr auto fields() {
    using O = GrowthStage;
    return std::tuple{
        field("at_step", &O::at_step, "grow after this step"),
        field("experts", &O::experts, "number of experts afterwards: 2x, 1.5x or 48"),
        field("score_batches", &O::score_batches, "last batches whose gradients rank the experts"),
        field("select", &O::select, "rule that picks the parents (default: waterfill; uniform with 0 score_batches)"),
        field("metric", &O::metric, "utility of an expert"),
        field("layer_selection", &O::layer_selection, "how the utilities of an expert's two layers make one"),
        field("temperature", &O::temperature, "of weighted_sampling"),
        field("max_duplicates", &O::max_duplicates, "most new copies of one expert"),
        field("expert_init", &O::expert_init, "how new experts arise"),
        field("router_init", &O::router_init, "how new router rows arise"),
        field("optimizer_state", &O::optimizer_state, "how Adam's moments grow"),
        field("balance_bias", &O::balance_bias, "selection bias of a new expert: copy or zero"),
        field("order", &O::order, "append or siblings"),
        field("allow_regroup", &O::allow_regroup, "let experts leave their router group"),
        field("scale_top_k", &O::scale_top_k, "as many times more experts a token"),
        field("split", &O::split, "cut every expert into so many narrower ones instead"),
        field("seed", &O::seed, "random seed (default: train.seed)"),
        field("rewarmup", &O::rewarmup, "steps in which the learning rate rises again from 0"),
        field("lr", &O::lr, "peak learning rate from here on, 0 for the one before"),
        field("balance_rate", &O::balance_rate, "step u of loss-free balancing for balance_steps"),
        field("balance_steps", &O::balance_steps, "steps with that rate")};
  }

  /// What `expand` would be told, with the seed of the run where the stage has none.
  plan::GrowthOptions growth_options(uint64_t run_seed) const;
  /// The rule that picks parents looks at scores.
  bool needs_scores() const;
};

/// The stages of a run in order, checked against each other and the run.
///
/// `tables` is an array of tables, or null for none; `steps` is the length of the run.
/// Throws   Error{kUsage} naming the stage and its key.
std::vector<GrowthStage> growth_stages(const Json& tables, int64_t steps);

/// Makes every stage's plan for a model of `config`, as it will be at that stage, with scores that are all alike: what
/// is wrong with a stage is known before the first step.
///
/// Throws   Error{kUsage, kUnsupported} naming the stage.
void check_stages(std::span<const GrowthStage> stages, const families::ModelConfig& config, uint64_t run_seed,
                  step::BalanceKind balance);

}  // namespace coppice::train
