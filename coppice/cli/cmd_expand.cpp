#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <optional>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/given_family.h"
#include "coppice/cli/output_options.h"
#include "coppice/cost/cost_plan.h"
#include "coppice/families/match.h"
#include "coppice/grow/exactness.h"
#include "coppice/grow/expand.h"
#include "coppice/io/output_place.h"
#include "coppice/options/options.h"
#include "coppice/plan/growth_settings.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/selection.h"
#include "coppice/plan/text.h"
#include "coppice/plan/undo.h"
#include "coppice/plan/utility.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "add experts to every MoE layer of a checkpoint";

struct ExpandOptions : OutputOptions, plan::GrowthSettings {
  std::filesystem::path model, out;
  std::optional<std::filesystem::path> family_file;
  std::optional<std::filesystem::path> scores, plan;
  std::optional<std::string> top_k;
  std::optional<uint64_t> split;
  bool undo = false;
  bool dry_run = false, json = false;
  Given given;

  static constexpr auto fields() {
    using O = ExpandOptions;
    const auto before = std::tuple{
        operand("MODEL", &O::model, "model directory in Hugging Face format (never changed)"),
        operand("OUT", &O::out, "directory of the expanded model; must not exist"),
        field("experts", &O::experts, "number of experts afterwards: 2x, 1.5x or 48 (default: 2x)"),
        field("recipe", &O::recipe, "a named set of options (`coppice list recipes`); options given here override it"),
        field("select", &O::select,
              "rule that chooses the experts to copy: `coppice list selections` (default: waterfill with scores, else "
              "uniform)"),
        field("temperature", &O::temperature, "temperature of weighted_sampling (default: 1)"),
        field("metric", &O::metric,
              "metric of the scores to rank experts by: `coppice list metrics` (default: gradient_squared)"),
        field("layer-selection", &O::layer_selection,
              "how the scores of an expert's two linear layers are combined: `coppice list layer-selections` (default: "
              "both_average)"),
        field("scores", &O::scores, "scores.json that `coppice score` wrote for this model"),
        field("max-duplicates", &O::max_duplicates,
              "maximum number of new copies of one expert (default: set by the rule)"),
        field("expert-init", &O::expert_init,
              "how the weights of a new expert are made from its parent's: `coppice list expert-init`; NAME or "
              "NAME:key=value (default: copy)"),
        field("router-init", &O::router_init,
              "how the router row of a new expert is made from its parent's: `coppice list router-init` (default: "
              "bias_only where there is a bias, else perturb_new_only)"),
        field("balance-bias", &O::balance_bias,
              "selection bias of a new expert: its parent's (copy, the default) or 0 (zero)"),
        field("optimizer-state", &O::optimizer_state,
              "how Adam's moments in trainer/ are made from the parent's: `coppice list optimizer-state` (default: "
              "copy)"),
        field("order", &O::order,
              "where new experts are placed: append (after all others) or siblings (after their parent) (default: "
              "siblings for grouped routers, else append)"),
        field("allow-regroup", &O::allow_regroup, "allow an expansion that moves experts to other router groups"),
        field("top-k", &O::top_k,
              "keep (default), or scale: multiply top-K by the same factor as the number of experts"),
        field("split", &O::split, "cut each expert into N narrower ones instead of copying; same function and work"),
        field("family-file", &O::family_file, kFamilyFileHelp),
        field("seed", &O::seed, "random seed; same seed, same bytes (default: 0)"),
        field("plan", &O::plan,
              "carry out the plan in this TOML file, which --dry-run printed and you may have edited"),
        field("undo", &O::undo, "undo the newest expansion of MODEL: keep only the original experts")};
    const auto after =
        std::tuple{field("dry-run", &O::dry_run, "print the plan as TOML that --plan reads; write nothing"),
                   field("json", &O::json, "print one JSON object")};
    return std::tuple_cat(before, output_fields(), after);
  }
};

[[noreturn]] void refuse(std::string_view option, std::string_view reason) {
  throw Error(ErrorCode::kUsage, cat("--", option, ": it has no effect here; ", reason, " (leave it out)"));
}

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

/// Throws   Error{kUsage} for a setting that was given and has no effect.
void check_used(const ExpandOptions& o, const families::ModelConfig& config, const plan::GrowthPlan& plan,
                bool has_optimizer_state) {
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

/// The plan that the options ask for: made from them, read from a file, or taken from the lineage.
plan::GrowthPlan plan_of(const ExpandOptions& o, const families::Model& model) {
  const std::vector<std::string> given = given_plan_options(o);
  if (o.plan && o.undo) refuse("plan", "--undo takes everything from coppice.json");
  if (o.plan || o.undo) {
    if (!given.empty())
      refuse(given.front(), o.plan ? "the plan file decides it" : "--undo takes everything from coppice.json");
  }
  if (o.undo) {
    if (o.allow_regroup) refuse("allow-regroup", "--undo takes everything from coppice.json");
    return plan::undo_plan(model.config, plan::read_lineage(model.checkpoint.directory()));
  }
  if (o.plan) {
    if (o.allow_regroup && model.config.routing.num_groups <= 1) {
      refuse("allow-regroup", "the model has no router groups");
    }
    return plan::read_plan(*o.plan, model.config, o.allow_regroup);
  }
  if (o.split && o.experts) refuse("experts", "--split already decides the number of experts");
  if (o.split == uint64_t{0} || o.split == uint64_t{1} || o.split > uint64_t{1} << 20) {
    throw Error(ErrorCode::kUsage, cat("--split: ", *o.split, " parts; wanted 2 or more"));
  }
  const auto scores = read_scores(o, model);
  plan::GrowthOptions growth = o.growth_options();
  growth.split = static_cast<int64_t>(o.split.value_or(1));
  if (o.top_k && *o.top_k != "keep" && *o.top_k != "scale") {
    throw Error(ErrorCode::kUsage, cat("--top-k: '", *o.top_k, "' is neither keep nor scale",
                                       suggestion(*o.top_k, std::vector<std::string>{"keep", "scale"})));
  }
  growth.scale_top_k = o.top_k == "scale";
  return plan::make_plan(model.config, growth, scores ? &*scores : nullptr);
}

/// The settings that determine the output, resolved: their meaning, not how they were spelled. A plan file is recorded
/// by the digest of its contents. The record also says that there was a plan file, because it may have been edited: its
/// methods and number of experts are known, but not which rule chose the parents.
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
  constexpr std::array<std::string_view, 8> kWithoutEffect = {"MODEL", "OUT",     "threads", "resume",
                                                              "part",  "dry-run", "json",    "plan"};
  Json record = Json::object();
  for (const OptionSpec& spec : option_specs(o)) {
    const Json value = spec.write();
    const bool is_off = spec.is_flag && !value.as_bool();
    if (std::ranges::find(kWithoutEffect, spec.name) == kWithoutEffect.end() && !value.is_null() && !is_off)
      record[spec.name] = recorded_setting(spec, o);
  }
  if (o.plan) {
    Sha256 digest;
    digest.add(plan.to_json().dump());
    record["plan"] = cat("sha256:", digest.hex());
  }
  return record;
}

struct Account {
  families::ParameterCount parameters_before, parameters_after;
  std::string top_k_after;
  grow::ExpandBytes bytes;
  plan::Exactness exactness;
};

Account account_of(const families::Model& model, const plan::GrowthPlan& plan) {
  auto config = families::read_config(plan::grown_config(model.config, plan), "config.json of the expanded model",
                                      model.config.family);
  config.moe_layer = model.config.moe_layer;  // some families show it only by their weights
  auto after = families::count_parameters(model, plan.experts_after);
  const int64_t of_one = after.experts / plan.experts_after / plan.split;  // an expert, or a part of one
  after.total -= after.experts - of_one * plan.experts_after;
  after.experts = of_one * plan.experts_after;
  const double met = static_cast<double>(of_one) * config.mean_top_k();
  after.active = after.total - of_one * plan.experts_after + std::llround(met);
  return {families::count_parameters(model), after, config.top_k_text(), grow::expand_bytes(model, plan),
          grow::growth_exactness(model, plan)};
}

Json account_json(const Account& account, const plan::GrowthPlan& plan) {
  Json json = Json::object();
  json["experts"] = Json::array({Json(plan.experts_before), Json(plan.experts_after)});
  json["parameters"] = Json::array({Json(account.parameters_before.total), Json(account.parameters_after.total)});
  json["active_parameters"] =
      Json::array({Json(account.parameters_before.active), Json(account.parameters_after.active)});
  json["weight_bytes"] = Json::array({Json(account.bytes.weights_before), Json(account.bytes.weights_after)});
  json["optimizer_bytes"] = Json::array({Json(account.bytes.optimizer_before), Json(account.bytes.optimizer_after)});
  json["exact"] = account.exactness.known ? Json(account.exactness.exact) : Json();
  json["exactness"] = account.exactness.reason;
  return json;
}

/// The plan as comments for the user, then as TOML.
std::string plan_account(const families::Model& model, const plan::GrowthPlan& plan, const Account& account) {
  const auto& bytes = account.bytes;
  const std::string top_k = model.config.top_k_text();
  std::string text =
      cat(model.config.family->model_type, ": ", plan.experts_before, " -> ", plan.experts_after, " experts in ",
          plan.layers.size(), " of ", model.config.num_layers, " layers, ", account.top_k_after, " per token ",
          account.top_k_after == top_k ? "(unchanged)" : cat("instead of ", top_k), "\n",
          "parameters: ", count_text(static_cast<double>(account.parameters_before.total)), " -> ",
          count_text(static_cast<double>(account.parameters_after.total)), ", active per token ",
          count_text(static_cast<double>(account.parameters_before.active)), " -> ",
          count_text(static_cast<double>(account.parameters_after.active)), "\n",
          "weights: ", bytes_text(bytes.weights_before), " -> ", bytes_text(bytes.weights_after), "\n");
  if (bytes.optimizer_after > 0) {
    text +=
        cat("optimizer state: ", bytes_text(bytes.optimizer_before), " -> ", bytes_text(bytes.optimizer_after), "\n");
  }
  text += cat("methods: ", plan::methods_text(plan), "\n");
  if (!plan.is_undo) text += plan::copies_text(plan);
  text += account.exactness.reason;
  if (!plan.is_undo && plan.split == 1) text += cat("\n", cost::closure_summary());
  std::string comments;
  for (const std::string& line : split(text, '\n')) comments += cat("# ", line, "\n");
  return plan.is_undo ? comments : cat(comments, "\n", plan::plan_toml(plan));
}

std::string wrote_text(const ExpandOptions& o, const families::ModelConfig& config, const plan::GrowthPlan& plan,
                       const output::WrittenModel& done) {
  return cat("wrote ", shown(o.out.string()), ": ", plan.experts_before, " -> ", plan.experts_after, " experts, ",
             size_text(done, o.part), done.optimizer_state ? " with optimizer state" : "", "; peak memory ",
             done.peak_rss_bytes >> 20, " MiB\n",
             config.is_quantised()
                 ? cat("Quantised with ", shown(config.quantisation), ": experts are copied byte for byte.\n")
                 : std::string());
}

/// The last line: for an expansion whether it is exact, for an undo what is restored.
std::string verdict(const families::Model& model, const plan::GrowthPlan& plan, const Account& account,
                    const std::filesystem::path& out) {
  if (!plan.is_undo) return account.exactness.reason;
  return plan::undo_account(model, plan, *plan::read_lineage(model.checkpoint.directory()),
                            families::open_model(out, model.config.family));
}

int run(std::span<const std::string_view> args) {
  auto o = parse<ExpandOptions>("expand", kSummary, args);
  o.check(o.dry_run);
  const GivenFamily given(o.family_file);
  const families::Model model = families::open_model(o.model, given.family());
  io::check_output_directory(o.out, o.model);
  warn_of_unfinished_handover(o.model);
  if (!o.plan && !o.undo) {
    static_cast<plan::GrowthSettings&>(o) =
        o.with_recipe(model.config.routing, model.checkpoint.files().has_folder(io::kTrainerFolder));
  }
  const plan::GrowthPlan plan = plan_of(o, model);
  const Account account = account_of(model, plan);
  if (!o.plan && !o.undo) check_used(o, model.config, plan, account.bytes.optimizer_before > 0);
  if (o.plan && plan.optimizer_state.name != "copy" && account.bytes.optimizer_before == 0) {
    throw Error(ErrorCode::kUsage, cat(*o.plan, ": methods.optimizer_state: '", plan.optimizer_state.name,
                                       "' has no effect, because the model has no trainer/ (set it to 'copy')"));
  }
  Json json = account_json(account, plan);
  tell_left_out(output::files_left_out(model.checkpoint, true), json);
  if (o.dry_run) {
    if (!plan.is_undo) json["plan"] = plan.to_json();
    std::cout << (o.json ? json.dump(2) + "\n" : plan_account(model, plan, account));
    return 0;
  }
  const auto done = grow::expand(model, plan, o.settings(o.out, settings_record(o, plan)));
  add_written(done, o.out, json);
  json["optimizer_state"] = done.optimizer_state;
  if (o.json) {
    std::cout << json.dump(2) << "\n";
  } else if (!done.missing_parts.empty()) {
    std::cout << part_text(done, *o.part, o.out);
  } else {
    std::cout << wrote_text(o, model.config, plan, done) << shown(verdict(model, plan, account, o.out)) << "\n";
  }
  return 0;
}

}  // namespace

extern const Command kExpand;
const Command kExpand{"expand", kSummary, run};

}  // namespace coppice::cli
