#include <algorithm>
#include <array>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/output_options.h"
#include "coppice/convert/convert.h"
#include "coppice/convert/lost_digits.h"
#include "coppice/convert/recipe.h"
#include "coppice/families/match.h"
#include "coppice/io/output_place.h"
#include "coppice/options/options.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "convert a dense model, or several, to a Mixture of Experts";

struct ConvertOptions : OutputOptions {
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

[[noreturn]] void refuse(std::string_view option, std::string_view reason) {
  throw Error(ErrorCode::kUsage, cat("--", option, ": it has no effect here; ", reason, " (leave it out)"));
}

bool is_given(const OptionSpec& spec) {
  const Json value = spec.write();
  if (spec.is_list) return !value.items().empty();
  return spec.is_flag ? value.as_bool() : !value.is_null();
}

constexpr std::array<std::string_view, 8> kOfEveryRun = {"MODEL",  "OUT",  "max-shard-bytes", "threads",
                                                         "resume", "part", "dry-run",         "json"};

/// Throws   Error{kUsage} for a setting that was given and has no effect.
void check_used(ConvertOptions o) {
  if (o.models.size() == 1 && o.trunk) refuse("trunk", "there is only one MODEL");
  if (!o.dense_average && o.no_virtual_group && o.granularity.value_or(1) == 1) {
    refuse("no-virtual-group", "with granularity 1 every expert has its own router row anyway");
  }
  if (!o.dense_average) return;
  if (o.models.size() > 1) refuse("dense-average", "it averages the experts of one MODEL");
  for (const OptionSpec& spec : option_specs(o)) {
    const bool has_effect = spec.name == "dense-average" || spec.name == "to" || spec.name == "lossy" ||
                            std::ranges::find(kOfEveryRun, spec.name) != kOfEveryRun.end();
    if (!has_effect && is_given(spec)) refuse(spec.name, "--dense-average makes no experts");
  }
}

/// Sets the options of the recipe that the user has not given.
void apply_recipe(ConvertOptions& o) {
  if (!o.recipe) return;
  const convert::Recipe& recipe = convert::recipe(*o.recipe);
  if (!o.routing && !recipe.routing.empty()) o.routing = recipe.routing;
  if (!o.scale) o.scale = recipe.scale;
  if (o.expert_init) return;
  o.expert_init = methods::MethodChoice::from_text(recipe.expert_init);
  o.init_all = o.init_all || recipe.init_all;
}

convert::ConversionOptions conversion_options(const ConvertOptions& o, const methods::RouterRows* rows) {
  convert::ConversionOptions c{.to = o.to,
                               .experts = o.experts,
                               .top_k = o.top_k,
                               .virtual_groups = !o.no_virtual_group,
                               .routing = o.routing,
                               .calibrate = o.calibrate,
                               .every = o.every,
                               .init_all = o.init_all,
                               .lossy = o.lossy};
  if (!o.layers.empty()) c.layers = o.layers;
  c.granularity = o.granularity.value_or(c.granularity);
  c.scale = o.scale.value_or(c.scale);
  c.shared_width = o.shared_expert.value_or(c.shared_width);
  c.expert_init = o.expert_init.value_or(c.expert_init);
  c.router = o.router.value_or(methods::MethodChoice{rows == nullptr ? "random" : "rows", {}});
  if (rows != nullptr) c.router_digest = rows->digest();
  c.trunk = o.trunk.value_or(c.trunk);
  c.seed = o.seed.value_or(c.seed);
  return c;
}

/// The settings that determine the output, resolved: their meaning, not how they were spelled.
Json settings_record(ConvertOptions o, const std::optional<convert::ConversionPlan>& given, std::string_view to) {
  o.recipe.reset();  // only a name for settings that are all recorded
  o.to = to;
  if (given) {
    const convert::ConversionPlan plan = canonical(*given);
    o.experts = plan.experts;
    o.top_k = plan.top_k;
    o.granularity = plan.granularity;
    o.routing = plan.routing;
    o.scale = o.scale.value_or(convert::ConversionOptions{}.scale);
    o.every.reset();
    o.layers.clear();
    for (const methods::LayerPlan& layer : plan.layers) o.layers.push_back(layer.layer);
    o.shared_expert = plan.shared_width;
    o.expert_init = plan.expert_init;
    o.router = plan.router;
    if (plan.parents > 1) o.trunk = plan.trunk;
    o.seed = plan.seed;
  }
  Json record = Json::object();
  for (const OptionSpec& spec : option_specs(o)) {
    const bool shapes =
        spec.name == "max-shard-bytes" || std::ranges::find(kOfEveryRun, spec.name) == kOfEveryRun.end();
    if (shapes && is_given(spec)) record[spec.name] = recorded_setting(spec, o);
  }
  return record;
}

/// A conversion and what the command prints about it.
struct Account {
  families::ParameterCount before, after;
  std::string what;
  std::optional<convert::ConversionPlan> plan;
  plan::Exactness exactness;
};

std::string scale_text(const convert::ExpertScale& s) {
  if (s == convert::ExpertScale{}) return "not scaled";
  return cat("gate times ", number_text(s.gate), ", up ", number_text(s.up), ", down ", number_text(s.down));
}

std::string plan_text(const convert::ConversionPlan& plan, const families::ModelConfig& after) {
  const std::string parents = plan.parents > 1 ? cat(plan.parents, " models of ") : std::string();
  std::string text = cat(
      parents, plan.from, " -> ", plan.to, ": ", plan.experts, " experts of width ", after.expert_width, " in ",
      plan.layers.size(), " of ", after.num_layers, " layers, ", plan.top_k, " per token, ", plan.routing, "\n",
      plan.granularity > 1
          ? cat("slices: ", plan.granularity, " of each dense layer, ",
                plan.virtual_groups ? "one router row for all slices of a group" : "each with its own router row", "\n")
          : std::string(),
      "weights: ", scale_text(plan.scale), "; copies made by ", plan.expert_init.to_text(),
      plan.init_all ? ", also the first expert of each slice" : "", "; routers ", plan.router.to_text(), "\n");
  return text;
}

Account account_of(const convert::Conversion& conversion, const families::Model& model,
                   const std::optional<convert::ConversionPlan>& plan) {
  const families::ModelConfig& after = conversion.mapping().config;
  Account account{
      .before = families::count_parameters(model), .after = families::count_parameters(after), .plan = plan};
  if (!plan) {
    account.what = cat(model.config.family->model_type, " -> ", after.family->model_type, ": the average of the ",
                       model.config.num_experts, " experts of each MoE layer\n");
    account.exactness = {false, "Not exact: the average of the experts computes another function than the mixture."};
    return account;
  }
  account.what = plan_text(*plan, after);
  const Json* activation = after.json.find("hidden_act");
  account.exactness = convert::conversion_exactness(*plan, activation->as_string());
  if (account.exactness.exact) {
    const std::string lost = convert::lost_by_scale(model, *plan);
    if (!lost.empty()) account.exactness = {false, cat("Not exact: ", lost)};
  }
  const bool is_open = account.exactness.exact || !account.exactness.known;
  if (is_open && !conversion.mapping().losses.empty())
    account.exactness = {false, "Not exact: some parts of the dense model are left out."};
  return account;
}

std::string account_text(const convert::Conversion& conversion, const Account& account) {
  std::string text = cat(account.what, "parameters: ", count_text(static_cast<double>(account.before.total)), " -> ",
                         count_text(static_cast<double>(account.after.total)), ", active per token ",
                         count_text(static_cast<double>(account.after.active)), "\n");
  for (const std::string& loss : conversion.mapping().losses) text += cat("left out: ", shown(loss), "\n");
  return cat(text, account.exactness.reason, "\n");
}

Json account_json(const convert::Conversion& conversion, const Account& account, std::string_view from) {
  const families::ModelConfig& after = conversion.mapping().config;
  Json json = Json::object();
  json["families"] = Json::array({Json(from), Json(after.family->model_type)});
  json["experts"] = after.num_experts;
  json["top_k"] = after.top_k;
  json["parameters"] = Json::array({Json(account.before.total), Json(account.after.total)});
  json["active_parameters"] = Json::array({Json(account.before.active), Json(account.after.active)});
  json["exact"] = account.exactness.known ? Json(account.exactness.exact) : Json();
  json["exactness"] = account.exactness.reason;
  json["losses"] = Json::array_of(conversion.mapping().losses);
  if (account.plan) json["plan"] = account.plan->to_json();
  return json;
}

int carry_out(convert::Conversion& conversion, const families::Model& first, const ConvertOptions& o,
              const Account& account) {
  Json json = account_json(conversion, account, first.config.family->model_type);
  tell_left_out(output::files_left_out(first.checkpoint, false), json);
  if (o.dry_run) {
    std::cout << (o.json ? json.dump(2) + "\n" : account_text(conversion, account));
    return 0;
  }
  const auto done = convert::convert(
      conversion, o.settings(o.out, settings_record(o, account.plan, conversion.mapping().config.family->model_type)));
  add_written(done, o.out, json);
  if (o.json) {
    std::cout << json.dump(2) << "\n";
  } else if (!done.missing_parts.empty()) {
    std::cout << part_text(done, *o.part, o.out);
  } else {
    std::cout << cat("wrote ", shown(o.out.string()), ": ", size_text(done, o.part), "; peak memory ",
                     done.peak_rss_bytes >> 20, " MiB\n")
              << account_text(conversion, account);
  }
  return 0;
}

int average(const ConvertOptions& o) {
  const families::Model model = families::open_model(o.models.front());
  if (!model.config.is_moe()) refuse("dense-average", cat(o.models.front(), " has no experts"));
  convert::Conversion conversion(model, o.to.value_or(std::string(convert::dense_counterpart(model))), o.lossy);
  const Account account = account_of(conversion, model, std::nullopt);
  return carry_out(conversion, model, o, account);
}

int run(std::span<const std::string_view> args) {
  auto o = parse<ConvertOptions>("convert", kSummary, args);
  o.check(o.dry_run);
  check_used(o);
  for (const auto& model : o.models) {
    io::check_output_directory(o.out, model);
    warn_of_unfinished_handover(model);
  }
  if (o.dense_average) return average(o);
  apply_recipe(o);
  std::vector<families::Model> parents;
  for (const auto& model : o.models) parents.push_back(families::open_model(model));
  std::optional<methods::RouterRows> rows;
  if (o.router_rows) rows = methods::RouterRows::read(*o.router_rows);
  const auto* given = rows ? &*rows : nullptr;
  const auto& first = parents.front();
  const auto plan =
      convert::make_conversion_plan(first.config, static_cast<int64_t>(parents.size()), conversion_options(o, given));
  convert::Conversion conversion(parents, plan, given);
  const Account account = account_of(conversion, first, plan);
  return carry_out(conversion, first, o, account);
}

}  // namespace

extern const Command kConvert;
const Command kConvert{"convert", kSummary, run};

}  // namespace coppice::cli
