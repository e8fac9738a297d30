#include "coppice/train/growth_stage.h"

#include <limits>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/plan/selection.h"
#include "coppice/plan/utility.h"
#include "coppice/train/unused_options.h"

namespace coppice::train {
namespace {

std::string name_of(size_t index, int64_t at_step) { return cat("growth ", index + 1, " (at_step ", at_step, ")"); }

void check_numbers(const GrowthStage& stage, const std::string& name) {
  const auto refuse = [&](std::string_view key, auto value, std::string_view wanted) {
    throw Error(ErrorCode::kUsage, cat(name, ": ", key, " is ", value, "; wanted ", wanted));
  };
  if (stage.score_batches < 0) refuse("score_batches", stage.score_batches, "0 or more");
  if (stage.split < 1) refuse("split", stage.split, "1 or more parts");
  const auto is_steps = [](int64_t value) { return value >= 0 && value <= families::kMaxCount; };
  const auto is_rate = [](double value) { return value >= 0 && value <= std::numeric_limits<float>::max(); };
  if (!is_steps(stage.rewarmup)) refuse("rewarmup", stage.rewarmup, "0 or more steps");
  if (!is_rate(stage.lr)) refuse("lr", stage.lr, "0 or a learning rate");
  if (!is_rate(stage.balance_rate)) refuse("balance_rate", stage.balance_rate, "0 or more");
  if (!is_steps(stage.balance_steps)) refuse("balance_steps", stage.balance_steps, "0 or more");
  if ((stage.balance_rate > 0) != (stage.balance_steps > 0)) {
    throw Error(ErrorCode::kUsage, cat(name, ": balance_rate is ", stage.balance_rate, " for balance_steps ",
                                       stage.balance_steps, "; wanted both above 0, or neither"));
  }
}

// Scores that are equal for all experts of all MoE layers.
plan::Scores equal_scores(const families::ModelConfig& config, const std::string& metric_name) {
  plan::Scores scores;
  scores.model_type = config.family->model_type;
  scores.layers = config.num_layers;
  scores.experts = config.num_experts;
  auto& metric = scores.metrics[metric_name];
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.moe_layer[static_cast<size_t>(layer)]) continue;
    metric.fc1.sum[layer].assign(static_cast<size_t>(config.num_experts), 1.0);
    metric.fc2.sum[layer] = metric.fc1.sum[layer];
  }
  return scores;
}

}  // namespace

bool GrowthStage::needs_scores() const {
  return split == 1 && score_batches > 0 && plan::selection_rule(rule().value_or("waterfill")).needs_scores;
}

plan::GrowthOptions GrowthStage::growth_options(const families::Routing& routing, uint64_t run_seed) const {
  auto out = with_recipe(routing, true).growth_options();
  out.scale_top_k = scale_top_k;
  out.split = split;
  out.seed = seed.value_or(run_seed);
  return out;
}

std::vector<GrowthStage> growth_stages(const Json& tables, int64_t steps) {
  std::vector<GrowthStage> stages;
  if (tables.is_null()) return stages;
  if (!tables.is_array()) {
    throw Error(ErrorCode::kUsage, "growth: found one value; wanted an array of tables, [[growth]] in the run file");
  }
  for (const Json& table : tables.items()) {
    const size_t index = stages.size();
    GrowthStage& stage = stages.emplace_back();
    read_object(stage, table, cat("growth ", index + 1));
    const std::string name = name_of(index, stage.at_step);
    const int64_t least = index == 0 ? 0 : stages[index - 1].at_step + 1;
    if (stage.at_step < least || stage.at_step >= steps) {
      throw Error(ErrorCode::kUsage, cat(name, ": wanted at_step from ", least, " to ", steps - 1,
                                         ", after the expansion before it and before the last step"));
    }
    check_numbers(stage, name);
  }
  return stages;
}

void check_stages(std::span<const GrowthStage> stages, const families::ModelConfig& config, uint64_t run_seed,
                  step::BalanceKind balance) {
  families::ModelConfig now = config;
  for (const GrowthStage& stage : stages) {
    check_used(stage, now, balance, cat("growth at step ", stage.at_step));
    try {
      const auto growth = stage.growth_options(now.routing, run_seed);
      const auto scores = equal_scores(now, growth.metric);
      const auto plan = plan::make_plan(now, growth, stage.needs_scores() ? &scores : nullptr);
      now = families::read_config(plan::grown_config(now, plan), "growth", now.family);
    } catch (const Error& error) {
      throw Error(error.code, cat("growth at step ", stage.at_step, ": ", error.what()));
    }
  }
}

}  // namespace coppice::train
