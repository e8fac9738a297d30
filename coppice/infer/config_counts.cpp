#include "coppice/infer/config_counts.h"

#include <algorithm>
#include <map>

#include "coppice/base/text.h"
#include "coppice/base/words.h"
#include "coppice/families/quantization.h"
#include "coppice/infer/config_keys_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer {
namespace {

using detail::is_part;
using detail::last_of;
using detail::refuse;
using detail::Rule;

constexpr std::string_view kTextKeys[] = {"text_config", "language_config", "llm_config"};

std::string type_of(const Json& json) {
  const Json* type = json.find("model_type");
  return type != nullptr && type->is_string() ? type->as_string() : std::string();
}

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

/// The language model whose count the whole file repeats: under the same keys, with the same numbers. Null if there is
/// none, and if both have the same type, so that a family cannot say which of them it describes.
const Part* repeated_in_file(const std::map<std::string, Part>& parts) {
  const Part& file = parts.at("");
  if (std::ranges::any_of(parts, [](const auto& part) { return !part.second.odd.empty(); })) return nullptr;
  if (!file.counts_more_than_one() || !file.by_layer.empty() || !file.lists.empty()) return nullptr;
  for (const std::string_view key : kTextKeys) {
    const auto text = parts.find(std::string(key));
    const bool repeats = text != parts.end() && type_of(*text->second.json) != type_of(*file.json) &&
                         std::ranges::all_of(file.counts, [&](const auto& count) {
                           const auto found = text->second.counts.find(count.first);
                           return found != text->second.counts.end() && found->second == count.second;
                         });
    if (repeats) return &text->second;
  }
  return nullptr;
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

std::set<int64_t> counted_elsewhere(const std::map<std::string, Part>& parts, const Part& but, bool is_repeated) {
  std::set<int64_t> out;
  for (const auto& [path, part] : parts) {
    for (const auto& [key, number] : part.by_layer) out.insert(number);
    if (&part == &but || (is_repeated && path.empty())) continue;
    for (const auto& [key, number] : part.counts) out.insert(number);
    for (const auto& [key, list] : part.lists) {
      for (const Json& item : list->items()) {
        if (is_whole(item)) out.insert(item.as_int());
      }
    }
  }
  return out;
}

}  // namespace

bool counts_experts(std::string_view key) {
  const std::string name = lower(key);
  if (!contains(name, "expert") || detail::counts_something_else(name)) return false;
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
  const Part* const repeated = repeated_in_file(parts.all());
  const Part& part = repeated != nullptr ? *repeated : chosen(parts.all());
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
  out.is_repeated = repeated != nullptr;
  out.others = counted_elsewhere(parts.all(), part, repeated != nullptr);
  if (out.others.contains(out.experts)) {
    refuse(Rule::kCount, cat("two parts of config.json count ", out.experts,
                             " experts each, and nothing says which tensors belong to which"));
  }
  detail::check_other_keys(*part.json, part.counts, out.experts);
  out.model_type = type_of(*part.json);
  if (out.model_type.empty()) out.model_type = part.path.empty() ? std::string() : cat(type_of(config), "_text");
  if (out.model_type.empty()) refuse(Rule::kCount, "config.json has no model_type");
  for (const auto& [key, number] : whole_numbers(*part.json)) {
    if (number > 1 && detail::is_groups(last_of(key), false)) out.num_groups_key = key;
    if (detail::is_groups(last_of(key), true)) out.top_groups_key = key;
  }
  if (out.num_groups_key.empty()) out.top_groups_key.clear();
  out.top_k_keys = detail::top_k_keys(*part.json, out.experts, out.top_k);
  out.is_quantised = families::find_quantization(config, *part.json) != nullptr;
  for (const auto& [key, number] : whole_numbers(config)) {
    if (contains(lower(last_of(key)), "vocab")) out.vocabularies.insert(number);
  }
  return out;
}

}  // namespace coppice::infer
