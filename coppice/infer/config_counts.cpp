#include "coppice/infer/config_counts.h"

#include <algorithm>
#include <map>

#include "coppice/base/text.h"
#include "coppice/base/words.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer {
namespace {

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
constexpr std::string_view kTextKeys[] = {"text_config", "language_config", "llm_config"};

std::string_view last_of(std::string_view path) { return path.substr(path.rfind('.') + 1); }

bool is_whole(const Json& value) { return value.kind() == Json::Kind::kInt; }

/// What one part of the file says.
struct Part {
  std::string path;
  const Json* json = nullptr;
  std::map<std::string, int64_t> counts, by_layer;
  std::map<std::string, const Json*> lists;
  std::map<std::string, const Json*> odd;  // counts that are no whole numbers: "8", 8.0

  bool counts_more_than_one() const {
    return std::ranges::any_of(counts, [](const auto& count) { return count.second >= 2; });
  }
};

/// A part is an object with a model_type of its own that describes a model.
bool is_part(const Json& object) {
  constexpr std::string_view kSizes[] = {"num_hidden_layers", "hidden_size", "n_layers",
                                         "d_model",           "num_layers",  "text_config"};
  const Json* type = object.find("model_type");
  return type != nullptr && type->is_string() && !type->as_string().empty() &&
         std::ranges::any_of(kSizes, [&](std::string_view key) { return object.find(key) != nullptr; });
}

bool is_by_layer(std::string_view key) {
  return contains(key, "per_layer") || contains(key, "layer_config") ||
         (!key.empty() && key.find_first_not_of("0123456789") == key.npos);
}

class Parts {
 public:
  explicit Parts(const Json& config) {
    (void)part("", config);
    walk(config, "", "", false);
  }
  const std::map<std::string, Part>& all() const { return parts_; }

 private:
  Part& part(const std::string& path, const Json& json) {
    Part& out = parts_[path];
    if (out.json == nullptr) out = {.path = path, .json = &json};
    return out;
  }

  void walk(const Json& node, const std::string& in, const std::string& below, bool in_layers) {
    for (const auto& [key, value] : node.members()) {
      const std::string path = below.empty() ? key : cat(below, ".", key);
      if (value.is_object()) {
        if (is_part(value)) {
          const std::string own = in.empty() ? key : cat(in, ".", key);
          (void)part(own, value);
          walk(value, own, "", false);
        } else {
          walk(value, in, path, in_layers || is_by_layer(key));
        }
      } else if (counts_experts(key)) {
        if (key.find('.') != key.npos) refuse(Rule::kCount, cat("config.json: '", path, "': a key with a dot in it"));
        Part& out = parts_.at(in);
        if (is_whole(value)) (in_layers ? out.by_layer : out.counts)[path] = value.as_int();
        if (value.is_array() && !value.items().empty()) out.lists[path] = &value;
        if (value.is_string() || (value.is_number() && !is_whole(value))) out.odd[path] = &value;
      }
    }
  }

  std::map<std::string, Part> parts_;
};

std::string keys_text(const std::map<std::string, int64_t>& counts) {
  std::vector<std::string> texts;
  for (const auto& [key, number] : counts) texts.push_back(cat("'", key, "' is ", number));
  return join(texts);
}

/// The part whose experts are meant: the whole file, or the only one that counts, or the only language model that does.
const Part& chosen(const std::map<std::string, Part>& parts) {
  std::vector<const Part*> live, texts;
  const Part* listed = nullptr;
  for (const auto& [path, part] : parts) {
    if (!part.lists.empty()) listed = &part;
    if (!part.counts_more_than_one()) continue;
    live.push_back(&part);
    const std::string name = lower(last_of(path));
    if (contains(name, "text") || contains(name, "language") || contains(name, "llm") || contains(name, "decoder"))
      texts.push_back(&part);
  }
  if (live.empty() && listed != nullptr) {
    const auto& [key, list] = *listed->lists.begin();
    refuse(Rule::kCount, cat("config.json: '", key, "' is ", list->dump(), "; wanted one number of experts"));
  }
  for (const auto& [path, part] : parts) {
    if (part.odd.empty()) continue;
    const auto& [key, value] = *part.odd.begin();
    refuse(Rule::kCount, cat("config.json: '", key, "' is ", value->dump(), "; wanted a whole number of experts"));
  }
  if (live.empty()) refuse(Rule::kCount, "no key of config.json counts two or more experts");
  if (live.front()->path.empty()) return *live.front();
  if (texts.size() == 1) return *texts.front();
  if (live.size() == 1) return *live.front();
  std::vector<std::string> names;
  for (const Part* part : live) names.push_back(part->path);
  refuse(Rule::kCount, cat("several parts of config.json count experts: ", join(names)));
}

bool is_top_k(std::string_view key) {
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
  const bool per_token = contains(key, "per_tok") && contains(key, "expert");
  return per_token || std::ranges::find(kNames, key) != std::end(kNames);
}

/// Whether `key` counts router groups, or those that a token may use.
bool is_groups(std::string_view key, bool chosen_ones) {
  constexpr std::string_view kAll[] = {"n_group", "n_groups", "num_expert_group", "num_expert_groups",
                                       "n_expert_groups"};
  constexpr std::string_view kChosen[] = {"topk_group", "topk_groups", "top_k_group", "top_k_groups"};
  return chosen_ones ? std::ranges::find(kChosen, key) != std::end(kChosen)
                     : std::ranges::find(kAll, key) != std::end(kAll);
}

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

void check_other_keys(const Part& part, int64_t experts) {
  for (const auto& [key, number] : whole_numbers(*part.json)) {
    const std::string name = lower(last_of(key));
    const bool of_experts = contains(name, "expert");
    if (of_experts && number != 0 && (contains(name, "zero") || contains(name, "null")))
      refuse(Rule::kCount, cat("config.json: '", key, "' is ", number, ": choices that are no experts"));
    const bool speaks_of_groups =
        contains(name, "group") && (is_about_experts(name) || contains(name, "top") || name == "num_groups");
    if (speaks_of_groups && number > 1 && !is_groups(last_of(key), false) && !is_groups(last_of(key), true))
      refuse(Rule::kCount,
             cat("config.json: '", key, "' is ", number, ", perhaps groups of experts in a form that is not known"));
    if (number != experts || part.counts.contains(key) || is_top_k(last_of(key)) || speaks_of_groups) continue;
    const bool is_size = contains_any(name, kNotACount);
    const bool is_of_router = (contains(name, "rout") || contains(name, "gate")) &&
                              (contains(name, "out") || contains(name, "dim") || contains(name, "size"));
    const std::string above = lower(key.substr(0, key.size() - name.size()));
    const bool is_below_router = contains(above, "rout") || contains(above, "gate");
    if ((contains_any(name, kMayCount) && !is_size) || is_of_router || is_below_router) {
      refuse(Rule::kCount, cat("config.json: '", key, "' is ", number, " too, like '", part.counts.begin()->first,
                               "', and may count experts"));
    }
  }
  check_lists(*part.json, "", experts);
}

std::set<int64_t> counted_elsewhere(const std::map<std::string, Part>& parts, const Part& but) {
  std::set<int64_t> out;
  for (const auto& [path, part] : parts) {
    for (const auto& [key, number] : part.by_layer) out.insert(number);
    if (&part == &but) continue;
    for (const auto& [key, number] : part.counts) out.insert(number);
    for (const auto& [key, list] : part.lists) {
      for (const Json& item : list->items()) {
        if (is_whole(item)) out.insert(item.as_int());
      }
    }
  }
  return out;
}

std::string type_of(const Json& json) {
  const Json* type = json.find("model_type");
  return type != nullptr && type->is_string() ? type->as_string() : std::string();
}

}  // namespace

bool counts_experts(std::string_view key) {
  const std::string name = lower(key);
  if (!contains(name, "expert") || contains_any(name, kNotACount)) return false;
  return name.ends_with("experts") || name.ends_with("expert_num") || name.ends_with("experts_num") ||
         name.ends_with("expert_count");
}

std::vector<std::pair<std::string, int64_t>> whole_numbers(const Json& json) {
  std::vector<std::pair<std::string, int64_t>> out;
  for (const auto& [key, value] : json.members()) {
    if (is_whole(value)) out.emplace_back(key, value.as_int());
    if (!value.is_object()) continue;
    for (auto& [path, number] : whole_numbers(value)) out.emplace_back(cat(key, ".", path), number);
  }
  return out;
}

std::set<int64_t> dimensions_in(const Json& json) {
  constexpr std::string_view kDimensions[] = {"hidden", "size",  "dim",     "width",  "head",  "intermediate",
                                              "rank",   "vocab", "channel", "kernel", "state", "d_model",
                                              "d_ff",   "ffn",   "latent",  "d_conv"};
  constexpr std::string_view kNotDimensions[] = {"layer", "position", "token_id", "expert",
                                                 "batch", "window",   "group",    "chunk"};
  std::set<int64_t> out;
  const auto numbers = whole_numbers(json);
  for (const auto& [path, number] : numbers) {
    const std::string key = lower(last_of(path));
    const bool is_width = contains(key, "intermediate") || contains(key, "ffn");
    if (!contains_any(key, kDimensions) || (contains_any(key, kNotDimensions) && !is_width)) continue;
    out.insert(number);
    const bool is_model = contains(key, "hidden_size") || contains(key, "d_model") || contains(key, "embed_dim");
    for (const auto& [other, heads] : numbers) {
      const bool counts_heads = other.ends_with("head") || other.ends_with("heads");
      if (!counts_heads || heads <= 0) continue;
      if (is_model && number % heads == 0) out.insert(number / heads);
      if (contains(key, "head_dim")) out.insert(number * heads);
    }
  }
  return out;
}

ExpertCount count_experts(const Json& config) {
  if (!config.is_object()) refuse(Rule::kCount, "config.json is not a JSON object");
  const Parts parts(config);
  const Part& part = chosen(parts.all());
  if (!part.path.empty() && std::ranges::find(kTextKeys, part.path) == std::end(kTextKeys)) {
    refuse(Rule::kCount, cat("config.json counts experts in '", part.path,
                             "'; coppice reads them in the whole file, in text_config, language_config or llm_config"));
  }
  if (!part.lists.empty()) {
    const auto& [key, list] = *part.lists.begin();
    refuse(Rule::kCount, cat("config.json: '", key, "' is ", list->dump(), "; wanted one number of experts"));
  }
  if (!part.by_layer.empty())
    refuse(Rule::kCount, cat("config.json counts experts by layer: ", keys_text(part.by_layer)));
  ExpertCount out{.text_key = part.path, .part = part.json, .experts = part.counts.begin()->second};
  for (const auto& [key, number] : part.counts) {
    if (number != out.experts)
      refuse(Rule::kCount, cat("keys of config.json disagree on the number of experts: ", keys_text(part.counts)));
    out.keys.push_back(key);
  }
  out.others = counted_elsewhere(parts.all(), part);
  if (out.others.contains(out.experts)) {
    refuse(Rule::kCount, cat("two parts of config.json count ", out.experts,
                             " experts each, and nothing says which tensors belong to which"));
  }
  check_other_keys(part, out.experts);
  out.model_type = type_of(*part.json);
  if (out.model_type.empty()) out.model_type = part.path.empty() ? std::string() : cat(type_of(config), "_text");
  if (out.model_type.empty()) refuse(Rule::kCount, "config.json has no model_type");
  for (const auto& [key, number] : whole_numbers(*part.json)) {
    const std::string_view name = last_of(key);
    if (is_top_k(name)) out.top_k_keys.push_back(key);
    if (number > 1 && is_groups(name, false)) out.num_groups_key = key;
    if (is_groups(name, true)) out.top_groups_key = key;
  }
  if (out.num_groups_key.empty()) out.top_groups_key.clear();
  return out;
}

}  // namespace coppice::infer
