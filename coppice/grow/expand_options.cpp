#include "coppice/grow/expand_options.h"

#include <algorithm>
#include <array>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/selection.h"
#include "coppice/plan/undo.h"
#include "coppice/plan/utility.h"

namespace coppice::grow {
namespace {

/// Names of the given options that determine a plan.
std::vector<std::string> given_plan_options(ExpandOptions o) {
  constexpr std::array<std::string_view, 16> kOfPlan = {
      "experts", "recipe",         "select",      "temperature", "metric",       "layer-selection",
      "scores",  "max-duplicates", "expert-init", "router-init", "balance-bias", "optimizer-state",
      "order",   "top-k",          "split",       "seed"};
  std::vector<std::string> given;
  for (const OptionSpec& spec : option_specs(o)) {
    if (std::ranges::find(kOfPlan, spec.name) != kOfPlan.end() && !spec.write().is_null()) given.push_back(spec.name);
  }
  return given;
}

std::optional<plan::Scores> read_scores(const ExpandOptions& o, const families::Model& model) {
  if (!o.scores) return std::nullopt;
  auto scores = plan::Scores::read(*o.scores);
  const std::string digest = model.digest();
  if (scores.model_digest != digest) {
    throw Error(ErrorCode::kFormat,
                cat(*o.scores, ": these are scores of another model (digest ", scores.model_digest.substr(0, 12), "; ",
                    o.model, " has ", digest.substr(0, 12), "); score this one with `coppice score`"));
  }
  return scores;
}

void check_plan_effects(const ExpandOptions& o, const plan::GrowthPlan& plan, bool has_optimizer_state) {
  if (o.plan && plan.optimizer_state.name != "copy" && !has_optimizer_state) {
    throw Error(ErrorCode::kUsage, cat(*o.plan, ": methods.optimizer_state: '", plan.optimizer_state.name,
                                       "' has no effect, because the model has no trainer/ (set it to 'copy')"));
  }
}

}  // namespace

ExpandOptions with_recipe(ExpandOptions o, const families::Model& model) {
  if (o.plan || o.undo) return o;
  plan::GrowthSettings& growth = o;
  growth = growth.with_recipe(model.config.routing, model.checkpoint.files().has_folder(io::kTrainerFolder));
  return o;
}

plan::GrowthPlan requested_plan(const ExpandOptions& o, const families::Model& model) {
  const std::vector<std::string> given = given_plan_options(o);
  if (o.plan && o.undo) refuse_option("plan", "--undo takes everything from coppice.json");
  if (o.plan || o.undo) {
    if (!given.empty())
      refuse_option(given.front(), o.plan ? "the plan file decides it" : "--undo takes everything from coppice.json");
  }
  if (o.undo) {
    if (o.allow_regroup) refuse_option("allow-regroup", "--undo takes everything from coppice.json");
    return plan::undo_plan(model.config, plan::read_lineage(model.checkpoint.directory()));
  }
  if (o.plan) {
    if (o.allow_regroup && model.config.routing.num_groups <= 1) {
      refuse_option("allow-regroup", "the model has no router groups");
    }
    return plan::read_plan(*o.plan, model.config, o.allow_regroup);
  }
  const auto scores = read_scores(o, model);
  return made_plan(o, model.config, scores ? &*scores : nullptr);
}

plan::GrowthPlan made_plan(const ExpandOptions& o, const families::ModelConfig& config, const plan::Scores* scores) {
  if (o.split && o.experts) refuse_option("experts", "--split already decides the number of experts");
  if (o.split == uint64_t{0} || o.split == uint64_t{1} || o.split > uint64_t{1} << 20) {
    throw Error(ErrorCode::kUsage, cat("--split: ", *o.split, " parts; wanted 2 or more"));
  }
  plan::GrowthOptions growth = o.growth_options();
  growth.split = static_cast<int64_t>(o.split.value_or(1));
  if (o.top_k && *o.top_k != "keep" && *o.top_k != "scale") {
    throw Error(ErrorCode::kUsage, cat("--top-k: '", *o.top_k, "' is neither keep nor scale",
                                       suggestion(*o.top_k, std::vector<std::string>{"keep", "scale"})));
  }
  growth.scale_top_k = o.top_k == "scale";
  return plan::make_plan(config, growth, scores);
}

void check_effects(const ExpandOptions& o, const families::ModelConfig& config, const plan::GrowthPlan& plan,
                   bool has_optimizer_state) {
  if (o.plan || o.undo) return check_plan_effects(o, plan, has_optimizer_state);
  const std::string rule = cat("the rule '", plan.select, "' ");
  refuse_without_effect(
      o.given, {{!plan::selection_rule(plan.select).needs_scores,
                 rule + "does not use scores",
                 {"scores", "metric", "layer-selection"}},
                {plan.select != "weighted_sampling", rule + "does not sample", {"temperature"}},
                {plan.select == "uniform", rule + "gives every expert the same number of copies", {"max-duplicates"}},
                {!config.routing.has_selection_bias, "the model has no selection bias", {"balance-bias"}},
                {!has_optimizer_state, cat("the model has no ", io::kTrainerFolder, "/"), {"optimizer-state"}}});
}

Json settings_record(ExpandOptions o, const plan::GrowthPlan& given) {
  const plan::GrowthOptions growth = o.growth_options();
  const plan::GrowthPlan plan = plan::canonical(given);
  if (o.top_k == "keep") o.top_k.reset();
  if (!o.plan) {
    const plan::SelectionRule& rule = plan::selection_rule(plan.select);
    if (rule.needs_scores) {
      o.metric = growth.metric;
      o.layer_selection = growth.layer_selection;
    }
    if (o.max_duplicates == rule.default_cap) o.max_duplicates.reset();
    if (plan.select == "weighted_sampling") o.temperature = growth.temperature;
    if (!o.split) o.experts = plan::ExpertCount::from_text(cat(plan.experts_after));
  }
  o.expert_init = plan.expert_init;
  o.optimizer_state = plan.optimizer_state;
  o.balance_bias = plan.balance_bias;
  o.seed = plan.seed;
  o.select = plan.select;
  o.router_init = plan.router_init;
  o.order = plan.order == plan::Order::kSiblings ? "siblings" : "append";
  const bool from_file = o.plan.has_value();
  o.plan.reset();  // the digest of its contents stands for it
  Json record = output::recorded_settings(option_specs(o), o);
  if (from_file) {
    Sha256 digest;
    digest.add(plan.to_json().dump());
    record["plan"] = cat("sha256:", digest.hex());
  }
  return record;
}

}  // namespace coppice::grow
