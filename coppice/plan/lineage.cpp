#include "coppice/plan/lineage.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/families/limits.h"
#include "coppice/io/model_directory.h"
#include "coppice/plan/checks_detail.h"
#include "coppice/plan/lineage_detail.h"

namespace coppice::plan {

using methods::LayerPlan;

void detail::refuse_lineage(std::string_view source, std::string_view found, std::string_view wanted) {
  throw Error(ErrorCode::kFormat, cat(source, ": ", found, "; wanted ", wanted,
                                      " (coppice did not write this lineage; move the file away to start a new one)"));
}

std::string_view detail::command_of(const Json& step) { return step.at("command").as_string(); }

uint64_t detail::seed_of_step(const Json& step, std::string_view source) {
  const Json& seed = step.at("seed");
  if (seed.kind() != Json::Kind::kFloat) return read_seed(JsonFields(step, std::string(source)));
  return read_seed(JsonFields(Json::object({{"seed", Json(seed.dump())}}), std::string(source)));  // 2^63 and more
}

namespace {

using detail::command_of;
using detail::naming;
using detail::refuse_lineage;
using detail::seed_of_step;

constexpr const char* kVersionKey = "coppice_lineage";
constexpr const char* kRoutingKey = "routing";
constexpr const char* kLineageUnique = "lineage_unique";
constexpr const char* kShareKey = "share";
constexpr const char* kShareSeedKey = "seed";
constexpr const char* kShareStepsKey = "share_steps";
constexpr const char* kWakeStepsKey = "wake_steps";
constexpr const char* kWakeStepsLeftKey = "wake_steps_left";
constexpr const char* kReleasedAtKey = "released_at";

using Parents = std::map<int64_t, std::vector<uint32_t>>;

/// The parents of all experts of a layer, checked: every parent has a child, and its first child is the original.
std::vector<uint32_t> checked_layer(const Json& list, int64_t before, int64_t after, const std::string& name) {
  if (std::cmp_not_equal(list.items().size(), after))
    refuse_lineage(name, cat(list.items().size(), " parents"), cat(after, ", one for each expert"));
  std::vector<uint32_t> layer;
  std::vector<bool> has_child(static_cast<size_t>(before), false);
  for (const Json& parent : list.items()) {
    const int64_t p = parent.as_int();
    if (p < 0 || p >= before) refuse_lineage(name, cat("the parent ", p), cat("0 to ", before - 1));
    layer.push_back(static_cast<uint32_t>(p));
    has_child[static_cast<size_t>(p)] = true;
  }
  const auto without = std::ranges::find(has_child, false);
  if (without != has_child.end())
    refuse_lineage(name, cat("no child of expert ", without - has_child.begin()), "the original of every expert");
  return layer;
}

Parents checked_parents(const Json& step, std::string_view source) {
  const Json& counts = step.at("experts");
  if (counts.items().size() != 2) refuse_lineage(source, cat("'experts' is ", counts.dump()), "[before, after]");
  const int64_t before = counts.items()[0].as_int();
  const int64_t after = counts.items()[1].as_int();
  const bool converts =
      command_of(step) == kConvertCommand;  // the slices of a dense model may become the same number of experts
  if (before < 1 || after < before + (converts ? 0 : 1) || after > families::kMaxExperts)
    refuse_lineage(source, cat("'experts' is ", counts.dump()), "0 < before < after");

  Parents parents;
  for (const auto& [key, list] : step.at("parents").members()) {
    const int64_t layer = methods::layer_from_key(key, cat(source, ": 'parents'"));
    parents[layer] = checked_layer(list, before, after, cat(source, ": layer ", key));
  }
  if (parents.empty()) refuse_lineage(source, "'parents' has no layer", "the parents of every layer with experts");
  return parents;
}

/// An expansion that multiplies top-K must multiply the number of experts by the same factor.
void check_factor(const Json& step, std::string_view key, std::string_view source) {
  const Json* value = step.find(key);
  if (value == nullptr) return;
  const int64_t factor = json_integer(*value, cat(source, ": '", key, "'"), 1, families::kMaxExperts);
  const auto& counts = step.at("experts").items();
  if (counts[1].as_int() != factor * counts[0].as_int())
    refuse_lineage(source, cat("'", key, "' is ", factor),
                   cat("the factor of the experts, ", step.at("experts").dump()));
}

Parents checked_step(const Json& step, std::string_view source) {
  if (!step.is_object()) refuse_lineage(source, cat("it is ", step.dump().substr(0, 40)), "an object");
  for (const char* key : {"command", "version", "source_digest", "order"}) (void)step.at(key).as_string();
  (void)seed_of_step(step, source);
  if (!step.at("methods").is_object()) refuse_lineage(source, "'methods' is not an object", "one");
  if (command_of(step) == kAverageCommand) return {};
  if (command_of(step) == kConvertCommand && !step.at("plan").is_object())
    refuse_lineage(source, "'plan' is not an object", "one");
  Parents parents = checked_parents(step, source);
  for (const char* key : {"top_k_factor", "split"}) check_factor(step, key, source);
  return parents;
}

/// Checks every step; returns the parents in the newest step.
std::optional<Parents> checked_lineage(const Json& lineage, std::string_view source) {
  return naming(source, [&] {
    if (!lineage.is_object()) refuse_lineage(source, "no object", "one");
    const int64_t version = lineage.at(kVersionKey).as_int();
    if (version != 1) refuse_lineage(source, cat("'", kVersionKey, "' is ", version), "1");
    std::optional<Parents> newest;
    const Json::Array& steps = lineage.at("steps").items();
    for (size_t i = 0; i < steps.size(); ++i) {
      const std::string name = cat(source, ": step ", i);
      newest = naming(name, [&] { return checked_step(steps[i], name); });
    }
    return newest;
  });
}

/// An integer of 0 or more, also one that does not fit into int64.
template <class Number>
Number whole_number(const Json& json, std::string_view key) {
  const std::string text = json.at(key).dump();
  Number value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || std::cmp_less(value, 0)) {
    refuse_lineage(io::kLineageFile, cat("'", key, "' is ", text), "a whole number of 0 or more");
  }
  return value;
}

/// The methods with all their parameters, because a later version may have other defaults.
Json methods_of(const GrowthPlan& given) {
  const GrowthPlan plan = canonical(given);
  Json methods = Json::object();
  methods["select"] = plan.select;
  methods["expert_init"] = plan.expert_init.to_text();
  methods["router_init"] = plan.router_init.to_text();
  methods["balance_bias"] = plan.balance_bias;
  methods["optimizer_state"] = plan.optimizer_state.to_text();
  for (const LayerPlan& layer : plan.layers) {
    const std::string key = std::to_string(layer.layer);
    if (layer.expert_init) methods["layers"][key]["expert_init"] = layer.expert_init->to_text();
    if (layer.router_init) methods["layers"][key]["router_init"] = layer.router_init->to_text();
  }
  return methods;
}

/// The lineage for a new model that is made from a model whose handover is not complete.
Json without_handover(const Json& lineage) { return with_waking(with_lineage_share(lineage, {}), {}); }

Json without_newest(const Json& before) {
  Json lineage = without_handover(before);  // the copies that the handover concerns are removed
  Json::Array steps = lineage.at("steps").items();
  COPPICE_CHECK(!steps.empty());
  steps.pop_back();
  lineage["steps"] = Json::array(std::move(steps));
  return lineage;
}

}  // namespace

Json lineage_step(std::string_view command, uint64_t seed, std::string_view source_digest) {
  Json step = Json::object();
  step["command"] = command;
  step["version"] = version();
  step["seed"] = seed_json(seed);
  step["source_digest"] = source_digest;
  return step;
}

Json parents_json(const std::vector<LayerPlan>& layers) {
  Json parents = Json::object();
  for (const LayerPlan& layer : layers) {
    Json::Array of_layer;
    for (const methods::Child& child : layer.children) of_layer.emplace_back(static_cast<int64_t>(child.parent));
    parents[std::to_string(layer.layer)] = Json::array(std::move(of_layer));
  }
  return parents;
}

Json with_step(const std::optional<Json>& before, Json step) {
  if (before) (void)checked_lineage(*before, io::kLineageFile);
  Json lineage = before ? without_handover(*before) : Json::object({{kVersionKey, Json(1)}, {"steps", Json::array()}});
  lineage["steps"].push_back(std::move(step));
  return lineage;
}

const Json* newest_step(const Json& lineage) {
  (void)checked_lineage(lineage, io::kLineageFile);
  const Json::Array& steps = lineage.at("steps").items();
  return steps.empty() ? nullptr : &steps.back();
}

Json extend_lineage(const std::optional<Json>& before, const GrowthPlan& plan, std::string_view command,
                    std::string_view source_digest, const Json& settings) {
  if (plan.is_undo) {
    (void)checked_lineage(*before, io::kLineageFile);
    return without_newest(*before);
  }
  Json step = lineage_step(command, plan.seed, source_digest);
  step["experts"] = Json::array({Json(plan.experts_before), Json(plan.experts_after)});
  step["order"] = plan.order == Order::kSiblings ? "siblings" : "append";
  step["methods"] = methods_of(plan);
  if (plan.top_k_factor != 1) step["top_k_factor"] = Json(plan.top_k_factor);
  if (plan.selection_bias_factor != 1) step["selection_bias_factor"] = Json(plan.selection_bias_factor);
  if (plan.split != 1) step["split"] = Json(plan.split);
  if (!settings.is_null()) step["settings"] = settings;
  step["parents"] = parents_json(plan.layers);
  return with_step(before, std::move(step));
}

std::optional<Json> read_lineage(const std::filesystem::path& model) {
  const io::ModelDirectory files(model);
  if (!files.has(io::kLineageFile)) return std::nullopt;
  Json lineage = files.read_json(io::kLineageFile);
  (void)checked_lineage(lineage, (model / io::kLineageFile).string());
  return lineage;
}

Json with_lineage_share(Json lineage, const LineageShare& note) {
  for (const char* key : {kRoutingKey, kShareKey, kShareSeedKey, kShareStepsKey}) lineage.erase(key);
  if (note.share <= 0) return lineage;
  lineage[kRoutingKey] = kLineageUnique;
  lineage[kShareKey] = note.share;
  if (note.seed) lineage[kShareSeedKey] = *note.seed;
  if (note.steps > 0) lineage[kShareStepsKey] = note.steps;
  return lineage;
}

LineageShare noted_lineage_share(const Json& lineage) {
  const Json* routing = lineage.find(kRoutingKey);
  if (routing == nullptr || *routing != Json(kLineageUnique)) return {};
  return naming(io::kLineageFile, [&] {
    LineageShare note;
    note.share = lineage.at(kShareKey).as_double();
    if (!(note.share >= 0 && note.share <= 1))
      refuse_lineage(io::kLineageFile, cat("'", kShareKey, "' is ", note.share), "0 to 1");
    if (lineage.find(kShareSeedKey) != nullptr) note.seed = whole_number<uint64_t>(lineage, kShareSeedKey);
    if (lineage.find(kShareStepsKey) != nullptr) note.steps = whole_number<int64_t>(lineage, kShareStepsKey);
    return note;
  });
}

Json with_release_over(const Json& lineage, int64_t step) {
  Json out = with_lineage_share(lineage, {});
  Json::Array steps = out.at("steps").items();
  COPPICE_CHECK(!steps.empty());
  if (steps.back().find(kReleasedAtKey) == nullptr) steps.back()[kReleasedAtKey] = step;
  out["steps"] = Json::array(std::move(steps));
  return out;
}

Json without_run_notes(const Json& lineage) {
  Json out = without_handover(lineage);
  Json::Array steps = out.at("steps").items();
  if (!steps.empty()) steps.back().erase(kReleasedAtKey);
  out["steps"] = Json::array(std::move(steps));
  return out;
}

std::optional<int64_t> released_at(const Json& lineage) {
  const Json::Array& steps = lineage.at("steps").items();
  if (steps.empty() || steps.back().find(kReleasedAtKey) == nullptr) return std::nullopt;
  return naming(io::kLineageFile, [&] { return whole_number<int64_t>(steps.back(), kReleasedAtKey); });
}

double lineage_share(const Json& lineage) { return noted_lineage_share(lineage).share; }

Json with_waking(Json lineage, const WakingNote& note) {
  for (const char* key : {kWakeStepsKey, kWakeStepsLeftKey}) lineage.erase(key);
  if (note.left <= 0) return lineage;
  lineage[kWakeStepsKey] = note.steps;
  lineage[kWakeStepsLeftKey] = note.left;
  return lineage;
}

WakingNote noted_waking(const Json& lineage) {
  if (lineage.find(kWakeStepsKey) == nullptr && lineage.find(kWakeStepsLeftKey) == nullptr) return {};
  return naming(io::kLineageFile, [&] {
    const WakingNote note{.steps = whole_number<int64_t>(lineage, kWakeStepsKey),
                          .left = whole_number<int64_t>(lineage, kWakeStepsLeftKey)};
    if (note.left < 1 || note.left > note.steps || note.steps > families::kMaxCount) {
      refuse_lineage(io::kLineageFile,
                     cat("'", kWakeStepsLeftKey, "' is ", note.left, " of '", kWakeStepsKey, "' ", note.steps),
                     cat("1 to that number of steps, which may be at most ", families::kMaxCount));
    }
    return note;
  });
}

std::optional<std::string> routing_warning(const std::filesystem::path& model, const std::optional<Json>& lineage) {
  if (const WakingNote waking = lineage ? noted_waking(*lineage) : WakingNote{}; waking.left > 0) {
    return cat(model, ": its dormant copies are not fully awake (", waking.left, " of ", waking.steps,
               " steps are left), so their selection biases are below their parents' (continue training until the "
               "handover is complete)");
  }
  const double share = lineage ? lineage_share(*lineage) : 0;
  if (share <= 0) return std::nullopt;
  return cat(
      model, ": trained under lineage-unique routing (share ", share,
      "); other programs use plain top-K, which computes another function (continue training until the handover is "
      "over)");
}

void warn_of_unfinished_handover(const std::filesystem::path& model) {
  const auto warning = routing_warning(model, read_lineage(model));
  if (warning) log_warning(cat(*warning, "; the new model uses plain top-K routing and does not record the handover"));
}

std::optional<Parents> newest_parents(const Json& lineage) {
  std::optional<Parents> parents = checked_lineage(lineage, io::kLineageFile);
  if (!parents) return parents;
  const std::string_view command = command_of(lineage.at("steps").items().back());
  if (command == kConvertCommand || command == kAverageCommand) return std::nullopt;
  return parents;
}

}  // namespace coppice::plan
