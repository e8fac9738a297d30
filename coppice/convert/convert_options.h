#pragma once

// The options of `coppice convert`, and what they ask for.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/convert/plan.h"
#include "coppice/methods/new_router.h"
#include "coppice/methods/params.h"
#include "coppice/options/options.h"
#include "coppice/output/output_options.h"

namespace coppice::convert {

/// The options of `coppice convert`.
struct ConvertOptions : output::OutputOptions {
  std::vector<std::filesystem::path> models;
  std::filesystem::path out;
  std::optional<std::string> to, recipe;
  std::optional<int64_t> experts, top_k, granularity;
  bool no_virtual_group = false;
  std::optional<std::string> routing, scale;
  bool calibrate = false;
  std::optional<int64_t> every;
  std::vector<int64_t> layers;
  std::optional<int64_t> shared_expert;
  std::optional<methods::MethodChoice> expert_init;
  bool init_all = false;
  std::optional<methods::MethodChoice> router;
  std::optional<std::filesystem::path> router_rows;
  std::optional<std::string> trunk;
  bool dense_average = false, lossy = false;
  std::optional<uint64_t> seed;
  bool dry_run = false, json = false;

  static constexpr auto fields() {
    using O = ConvertOptions;
    const auto before = std::tuple{
        operand("MODEL", &O::models,
                "dense model in Hugging Face format (never changed), or several of the same shape"),
        operand("OUT", &O::out, "directory of the converted model; must not exist"),
        field("to", &O::to, "family of OUT: `coppice list conversions` (default: the closest to MODEL's)"),
        field("experts", &O::experts, "number of experts per layer (default: 8 times the granularity)"),
        field("top-k", &O::top_k, "experts per token (default: 2 times the granularity)"),
        field("granularity", &O::granularity,
              "cut the feed-forward layer into N slices; each expert is one slice (default: 1)"),
        field("recipe", &O::recipe,
              "a named set of options (`coppice list convert-recipes`); options given here override it"),
        field("no-virtual-group", &O::no_virtual_group,
              "give every expert its own router row, instead of one row for the slices that form a dense layer"),
        field("routing", &O::routing, "softmax_topk or topk_softmax (default: as the family of OUT computes it)"),
        field("scale", &O::scale,
              "how experts are scaled to make up for their gates: `coppice list scales` (default: cbrt)"),
        field("calibrate", &O::calibrate, "compute that scale from the gates of random logits instead of equal gates"),
        field("every", &O::every, "give experts to every N-th layer only"),
        field("layers", &O::layers, "give experts to these layers only, such as 1,3,5"),
        field("shared-expert", &O::shared_expert, "add a shared expert of this width; its output is 0 at first"),
        field("expert-init", &O::expert_init,
              "how the second and later experts of a slice are made: `coppice list expert-init`; NAME or "
              "NAME:key=value (default: copy)"),
        field("init-all", &O::init_all, "apply --expert-init to the first expert of each slice too"),
        field("router", &O::router, "how router rows are made: `coppice list routers` (default: random)"),
        field("router-rows", &O::router_rows,
              "safetensors file with the rows of every router, such as from `coppice cluster`"),
        field("trunk", &O::trunk,
              "with several models, where tensors other than experts come from: average (default) or first"),
        field("dense-average", &O::dense_average, "average the experts of MODEL into a dense model"),
        field("lossy", &O::lossy,
              "convert even if the family of OUT has no place for some tensors or settings; they are left out"),
        field("seed", &O::seed, "random seed; same seed, same bytes (default: 0)")};
    const auto after = std::tuple{field("dry-run", &O::dry_run, "print what would be written; write nothing"),
                                  field("json", &O::json, kJsonHelp)};
    return std::tuple_cat(before, output_fields(), after);
  }
};

/// Throws   Error{kUsage} for an option that was given and has no effect beside the others.
void check_effects(const ConvertOptions& options);

/// The same options with their recipe applied: what the user has given overrides it.
///
/// Throws   Error{kUsage}: unknown recipe, with the nearest name.
ConvertOptions with_recipe(ConvertOptions options);

/// The options of the plan. `rows` are those of --router-rows; null without.
ConversionOptions conversion_options(const ConvertOptions& options, const methods::RouterRows* rows);

/// The settings that determine the output, resolved: their meaning, not how they were spelled. `plan` is null for the
/// average of experts; `to` is the family of the output.
Json settings_record(ConvertOptions options, const ConversionPlan* plan, std::string_view to);

}  // namespace coppice::convert
