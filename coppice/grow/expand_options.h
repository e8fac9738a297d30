#pragma once

// The options of `coppice expand`, and what they ask for.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/infer/given_family.h"
#include "coppice/options/options.h"
#include "coppice/output/output_options.h"
#include "coppice/plan/growth_settings.h"
#include "coppice/plan/plan.h"
#include "coppice/plan/utility.h"

namespace coppice::grow {

/// The options of `coppice expand`.
struct ExpandOptions : output::OutputOptions, plan::GrowthSettings {
  std::filesystem::path model, out;
  std::optional<std::filesystem::path> family_file;
  std::optional<std::filesystem::path> scores, plan;
  std::optional<std::string> top_k;
  std::optional<uint64_t> split;
  bool undo = false;
  bool dequantize = false;
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
        field("family-file", &O::family_file, infer::kFamilyFileHelp),
        field("dequantize", &O::dequantize,
              "write a quantised model in bf16, so that methods can change values; formats: fp8, mxfp4, "
              "compressed-tensors, modelopt"),
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

/// The same options with their recipe applied. A plan file and an undo have no recipe.
///
/// Throws   Error{kUsage}: unknown recipe or rule, with the nearest name.
ExpandOptions with_recipe(ExpandOptions options, const families::Model& model);

/// The plan that the options ask for: made from them, read from a file, or taken from the lineage. Call with_recipe
/// first.
///
/// Throws   Error{kUsage}: an option that has no effect, or a value that is not valid; Error{kFormat}: scores of
///          another model, a damaged plan file or lineage.
plan::GrowthPlan requested_plan(const ExpandOptions& options, const families::Model& model);

/// The plan that the options make for a model with this configuration, from scores that were read already. Not for
/// --plan and --undo. Call with_recipe first.
///
/// Throws   as make_plan; Error{kUsage}: a value of an option that is not valid.
plan::GrowthPlan made_plan(const ExpandOptions& options, const families::ModelConfig& config,
                           const plan::Scores* scores);

/// Throws   Error{kUsage} for an option that was given, or a method of a plan file, that has no effect on this model.
void check_effects(const ExpandOptions& options, const families::ModelConfig& config, const plan::GrowthPlan& plan,
                   bool has_optimizer_state);

/// The settings that determine the output, resolved: their meaning, not how they were spelled. A plan file is recorded
/// by the digest of its contents. The record also says that there was a plan file, because it may have been edited: its
/// methods and number of experts are known, but not which rule chose the parents.
Json settings_record(ExpandOptions options, const plan::GrowthPlan& plan);

}  // namespace coppice::grow
