#include <algorithm>
#include <array>
#include <iostream>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/convert/pairs.h"
#include "coppice/convert/plan.h"
#include "coppice/convert/recipe.h"
#include "coppice/families/routing_class.h"
#include "coppice/io/file_rules.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/new_router.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/options/options.h"
#include "coppice/plan/recipe.h"
#include "coppice/plan/selection.h"
#include "coppice/plan/utility.h"

namespace coppice::cli {
namespace {

struct ListOptions {
  std::optional<std::string> what;
  bool json = false;
  static constexpr auto fields() {
    using O = ListOptions;
    return std::tuple{operand("WHAT", &O::what, "name of a list (default: print the names of all lists)"),
                      field("json", &O::json, kJsonHelp)};
  }
};

constexpr std::string_view kSummary = "list what this build supports: families, methods, metrics";

struct Entry {
  std::string name, summary, source;
  std::span<const methods::ParamSpec> params = {};
  Json more = Json::object();  ///< further members, only for --json
};

/// Which expansions are exact for a family, by its routing with the switches at their defaults.
Json routing_json(const families::Family& family) {
  const families::Routing routing = families::default_routing(family);
  const auto& info = families::routing_class_info(families::routing_class(routing));
  Json exact = Json::object({{"plain_top_1", info.exact_top_1}, {"scaled_top_k", info.can_scale}});
  if (!info.scaled.empty()) exact["scaled_top_k_with"] = info.scaled;
  if ((routing.has_router_bias || routing.has_selection_bias) && !info.dormant.empty())
    exact["dormant_copies"] = info.dormant;
  Json json = Json::object({{"class", info.name}, {"routing", info.routing}});
  if (family.renormalise.kind == families::Switch::Kind::kKey) json["class_depends_on"] = family.renormalise.key;
  json["groups"] = family.has_groups;
  json["layout"] = families::layout_text(family);
  json["trainable"] = !family.surgery_only;
  json["exact"] = std::move(exact);
  return json;
}

std::vector<Entry> families_entries() {
  std::vector<Entry> entries;
  for (const families::Family* family : families::all_families()) {
    Entry& entry = entries.emplace_back(
        Entry{std::string(family->model_type), "dense", std::string(family->architecture), {}, Json::object()});
    if (!family->has_moe()) continue;
    entry.summary = family->surgery_only ? "Mixture of Experts (expand only, no training)" : "Mixture of Experts";
    entry.more = routing_json(*family);
  }
  return entries;
}

template <class Rows>
std::vector<Entry> entries_of(const Rows& rows) {
  std::vector<Entry> entries;
  for (const auto& row : rows) {
    Entry& entry = entries.emplace_back(Entry{std::string(row.name), std::string(row.summary), "", {}, Json::object()});
    if constexpr (requires { row.source; }) entry.source = row.source;
    if constexpr (requires { row.params; }) entry.params = row.params;
    if constexpr (requires { row.merges; }) entry.more["merges"] = row.merges;
  }
  return entries;
}

/// Dense families and the families that they can be converted to.
std::vector<Entry> conversions_entries() {
  std::vector<Entry> entries;
  for (const convert::ConversionPair& pair : convert::conversion_pairs()) {
    const std::string changes = pair.changes.empty() ? "" : cat(", with ", join(pair.changes, ", with "));
    const std::string summary = pair.losses.empty()
                                    ? cat("complete", changes)
                                    : cat("only with --lossy, which leaves out: ", join(pair.losses, "; "));
    Json more = Json::object({{"from", pair.from}, {"to", pair.to}});
    more["changes"] = Json::array_of(pair.changes);
    more["losses"] = Json::array_of(pair.losses);
    Json& when = more["lossy_with"] = Json::object();
    for (const auto& [setting, losses] : pair.when) when[setting] = Json::array_of(losses);
    entries.push_back({cat(pair.from, " -> ", pair.to), summary, "", {}, std::move(more)});
  }
  return entries;
}

/// Kinds of files in model directories and what expand and convert do with them.
std::vector<Entry> files_entries() {
  std::vector<Entry> entries;
  for (const io::FileRule& rule : io::file_rules()) {
    const std::string decision(io::decision_name(rule.decision));
    Json more = Json::object({{"decision", decision}, {"reason", rule.reason}});
    more["patterns"] = Json::array_of(split(rule.patterns, ' '));
    const std::string reason = rule.reason.empty() ? "" : cat(": ", rule.reason);
    entries.push_back({std::string(rule.kind), cat(decision, reason), "", {}, std::move(more)});
  }
  return entries;
}

struct List {
  std::string_view name, summary;
  std::vector<Entry> (*entries)();
};

constexpr std::array<List, 13> kLists = {{
    {"families", "model families; with --json: how they route and store experts, which expansions are exact",
     families_entries},
    {"expert-init", "how a new expert's weights are made from its parent's",
     [] { return entries_of(methods::expert_inits()); }},
    {"router-init", "how a new expert's router row is made from its parent's",
     [] { return entries_of(methods::router_inits()); }},
    {"optimizer-state", "how a new expert's Adam moments are made from its parent's",
     [] { return entries_of(methods::optimizer_inits()); }},
    {"metrics", "metrics of an expert's utility, measured by `coppice score`",
     [] { return entries_of(plan::utility_metrics()); }},
    {"selections", "rules that choose the experts to copy", [] { return entries_of(plan::selection_rules()); }},
    {"layer-selections", "how the scores of an expert's two linear layers are combined",
     [] { return entries_of(plan::layer_selections()); }},
    {"recipes", "named sets of options of `coppice expand`", [] { return entries_of(plan::recipes()); }},
    {"conversions", "families of dense models, what they can be converted to and what is left out",
     conversions_entries},
    {"scales", "how `coppice convert` scales experts to make up for their gates",
     [] { return entries_of(convert::scale_modes()); }},
    {"routers", "how `coppice convert` makes router rows", [] { return entries_of(methods::new_routers()); }},
    {"convert-recipes", "named sets of options of `coppice convert`", [] { return entries_of(convert::recipes()); }},
    {"files", "files beside a model's weights: which ones expand and convert copy, leave out or refuse", files_entries},
}};

std::vector<Entry> lists_entries() { return entries_of(kLists); }

std::vector<Entry> entries_named(const std::string& what) {
  std::vector<std::string> names;
  for (const List& list : kLists) {
    if (list.name == what) return list.entries();
    names.emplace_back(list.name);
  }
  throw Error(ErrorCode::kUsage, cat("'", what, "': is not a list", suggestion(what, names), " (see `coppice list`)"));
}

Json json_of(const std::vector<Entry>& entries) {
  Json out = Json::array();
  for (const Entry& entry : entries) {
    Json row = Json::object({{"name", entry.name}, {"summary", entry.summary}});
    if (!entry.source.empty()) row["source"] = entry.source;
    for (const auto& [key, value] : entry.more.members()) row[key] = value;
    for (const auto& param : entry.params) {
      row["params"].push_back(Json::object(
          {{"key", param.key}, {"default", param.fallback}, {"lo", param.lo}, {"hi", param.hi}, {"help", param.help}}));
    }
    out.push_back(std::move(row));
  }
  return out;
}

void print(const std::vector<Entry>& entries) {
  size_t width = 0;
  for (const Entry& entry : entries) width = std::max(width, entry.name.size());
  for (const Entry& entry : entries) {
    const std::string source = entry.source.empty() ? "" : cat(" [", entry.source, "]");
    std::cout << entry.name << std::string(width - entry.name.size() + 2, ' ') << entry.summary << source << "\n";
    for (const auto& param : entry.params) {
      std::cout << std::string(width + 4, ' ') << entry.name << ":" << param.key << "=" << cat(param.fallback) << "  "
                << param.help << " (" << cat(param.lo) << " to " << cat(param.hi) << ")\n";
    }
  }
}

int run(std::span<const std::string_view> args) {
  const auto options = parse<ListOptions>("list", kSummary, args);
  const std::string title = options.what.value_or("lists");
  const auto entries = options.what ? entries_named(*options.what) : lists_entries();
  if (options.json) {
    std::cout << Json::object({{title, json_of(entries)}}).dump(2) << "\n";
  } else {
    print(entries);
  }
  return 0;
}

}  // namespace

extern const Command kList;
const Command kList{"list", kSummary, run};

}  // namespace coppice::cli
