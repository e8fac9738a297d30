#include <algorithm>

#include "coppice/base/text.h"
#include "coppice/base/words.h"
#include "coppice/infer/config_counts.h"
#include "coppice/infer/config_keys_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer {
namespace {

using detail::is_part;
using detail::last_of;
using detail::refuse;
using detail::Rule;

// Words in names of keys that mention experts and count something else.
constexpr std::string_view kNotACount[] = {
    "per_tok",  "topk",         "top_k",   "shared", "share_",   "zero",      "null",     "width", "size",
    "dim",      "intermediate", "hidden",  "group",  "period",   "offset",    "capacity", "layer", "step",
    "interval", "freq",         "overlap", "sink",   "parallel", "rank",      "bias",     "scale", "scaling",
    "active",   "activated",    "select",  "used",   "limit",    "redundant", "coef",     "loss",  "jitter",
    "dropout",  "fixed",        "common",  "always", "static",   "type",      "norm",     "token", "fn"};
constexpr std::string_view kMayCount[] = {"moe", "rout", "expert", "gate_", "_gate", "slot"};

/// Whether a key may describe routers or experts.
bool is_about_experts(std::string_view key) {
  return contains(key, "moe") || contains(key, "rout") || contains(key, "expert") || contains(key, "gate") ||
         contains(key, "gating");
}

/// Lists and maps with an entry for each expert, or with E among the sizes of a router's layers.
void check_lists(const Json& json, const std::string& place, int64_t experts) {
  for (const auto& [key, value] : json.members()) {
    const std::string path = place.empty() ? key : cat(place, ".", key);
    const std::string name = lower(path);
    const bool is_relevant = is_about_experts(name) && !contains(name, "layer_type");
    if (value.is_array()) {
      for (const Json& item : value.items()) {
        if (!item.is_object()) continue;
        for (const auto& [inner, number] : whole_numbers(item)) {
          if (number == experts && is_about_experts(lower(inner)))
            refuse(Rule::kCount,
                   cat("config.json: '", path, "' has '", inner, "': ", number, ", which may count experts"));
        }
      }
    }
    if (value.is_array() && is_relevant) {
      const bool has_e = std::ranges::any_of(value.items(), [&](const Json& item) { return item == Json(experts); });
      const bool by_layer = contains(name, "layer") && !contains(name, "rout");
      if (!by_layer && (std::cmp_equal(value.items().size(), experts) || has_e))
        refuse(Rule::kCount, cat("config.json: '", path, "' is ", value.dump().substr(0, 60),
                                 ", which may have an entry for each expert or count them"));
    }
    if (!value.is_object() || (place.empty() && is_part(value))) continue;
    const bool is_numbered = !value.members().empty() && std::ranges::all_of(value.members(), [](const auto& member) {
      return member.first.find_first_not_of("0123456789") == std::string::npos;
    });
    if (is_numbered && is_relevant && std::cmp_equal(value.members().size(), experts))
      refuse(Rule::kCount,
             cat("config.json: '", path, "' has ", experts, " numbered entries, perhaps one for each expert"));
    check_lists(value, path, experts);
  }
}

/// How a key says that it counts the experts of a token.
enum class Says : uint8_t { kByName, kByWords, kPerhaps, kNot };

/// A name of no known form counts them only if its number is below that of the experts. `samples`: the configuration has
/// settings of sampling, one of which is top_k.
Says counts_chosen(std::string_view path, int64_t number, int64_t experts, bool samples) {
  constexpr std::string_view kNames[] = {"moe_k",
                                         "moe_topk",
                                         "moe_top_k",
                                         "top_k_experts",
                                         "router_top_k",
                                         "router_topk",
                                         "moe_router_topk",
                                         "num_selected_experts",
                                         "num_experts_top_k",
                                         "n_activated_experts",
                                         "num_activated_experts"};
  constexpr std::string_view kSays[] = {"per_tok", "topk", "top_k", "activ", "select", "chosen", "used"};
  constexpr std::string_view kNot[] = {"group", "shared", "share_", "size",  "dim",  "width", "layer",   "norm",
                                       "scal",  "coef",   "loss",   "bias",  "prob", "zero",  "null",    "limit",
                                       "node",  "device", "freq",   "start", "step", "index", "capacity"};
  const std::string name = lower(last_of(path));
  if (std::ranges::find(kNames, name) != std::end(kNames)) return Says::kByName;
  if (contains_any(name, kNot)) return Says::kNot;
  if (contains(name, "expert") && contains(name, "per_tok")) return Says::kByName;
  if (number < 1 || number >= experts) return Says::kNot;
  const bool of_experts = contains(name, "expert") || contains(name, "moe") || contains(name, "rout");
  if (of_experts && contains_any(name, kSays)) return Says::kByWords;
  const std::string above = lower(path.substr(0, path.size() - name.size()));
  const bool is_bare = name == "top_k" || name == "topk";
  if (is_about_experts(above) || contains(above, "ffn")) return is_bare || name == "k" ? Says::kByWords : Says::kNot;
  return is_bare && above.empty() && !samples ? Says::kPerhaps : Says::kNot;
}

}  // namespace

bool detail::counts_something_else(std::string_view name) { return contains_any(name, kNotACount); }

bool detail::is_part(const Json& object) {
  constexpr std::string_view kSizes[] = {"num_hidden_layers", "hidden_size", "n_layers",
                                         "d_model",           "num_layers",  "text_config"};
  const Json* type = object.find("model_type");
  return type != nullptr && type->is_string() && !type->as_string().empty() &&
         std::ranges::any_of(kSizes, [&](std::string_view key) { return object.find(key) != nullptr; });
}

std::vector<std::string> detail::top_k_keys(const Json& part, int64_t experts, int64_t& top_k) {
  constexpr std::string_view kSampling[] = {"top_p", "temperature", "do_sample", "num_beams", "repetition_penalty"};
  const bool samples = std::ranges::any_of(kSampling, [&](std::string_view key) { return part.find(key) != nullptr; });
  std::map<Says, std::vector<std::pair<std::string, int64_t>>> by_form;
  for (const auto& [key, number] : whole_numbers(part)) {
    const Says how = counts_chosen(key, number, experts, samples);
    if (how != Says::kNot) by_form[how].emplace_back(key, number);
  }
  if (by_form.empty()) return {};
  const auto& found = by_form.begin()->second;  // those that say it best
  std::vector<std::string> keys;
  for (const auto& [key, number] : found) {
    if (number != found.front().second) {
      refuse(Rule::kCount, cat("keys of config.json disagree on the experts of a token: '", found.front().first,
                               "' is ", found.front().second, ", '", key, "' is ", number));
    }
    keys.push_back(key);
    top_k = number;
  }
  return keys;
}

bool detail::is_groups(std::string_view key, bool chosen_ones) {
  constexpr std::string_view kAll[] = {"n_group", "n_groups", "num_expert_group", "num_expert_groups",
                                       "n_expert_groups"};
  constexpr std::string_view kChosen[] = {"topk_group", "topk_groups", "top_k_group", "top_k_groups"};
  return chosen_ones ? std::ranges::find(kChosen, key) != std::end(kChosen)
                     : std::ranges::find(kAll, key) != std::end(kAll);
}

void detail::check_other_keys(const Json& part, const std::map<std::string, int64_t>& counts, int64_t experts) {
  for (const auto& [key, number] : whole_numbers(part)) {
    const std::string name = lower(last_of(key));
    const bool of_experts = contains(name, "expert");
    if (of_experts && number != 0 && (contains(name, "zero") || contains(name, "null")))
      refuse(Rule::kCount, cat("config.json: '", key, "' is ", number, ": choices that are no experts"));
    const bool speaks_of_groups =
        contains(name, "group") && (is_about_experts(name) || contains(name, "top") || name == "num_groups");
    if (speaks_of_groups && number > 1 && !is_groups(last_of(key), false) && !is_groups(last_of(key), true))
      refuse(Rule::kCount,
             cat("config.json: '", key, "' is ", number, ", perhaps groups of experts in a form that is not known"));
    if (number != experts || counts.contains(key) || counts_chosen(key, number, experts, false) != Says::kNot ||
        speaks_of_groups)
      continue;
    const bool is_size = counts_something_else(name);
    const bool is_of_router = (contains(name, "rout") || contains(name, "gate")) &&
                              (contains(name, "out") || contains(name, "dim") || contains(name, "size"));
    const std::string above = lower(key.substr(0, key.size() - name.size()));
    const bool is_below_router = contains(above, "rout") || contains(above, "gate");
    if ((contains_any(name, kMayCount) && !is_size) || is_of_router || is_below_router) {
      refuse(Rule::kCount, cat("config.json: '", key, "' is ", number, " too, like '", counts.begin()->first,
                               "', and may count experts"));
    }
  }
  check_lists(part, "", experts);
}

}  // namespace coppice::infer
