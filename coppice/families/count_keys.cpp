#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "coppice/base/words.h"
#include "coppice/families/count_keys_detail.h"
#include "coppice/io/expert_mentions.h"

namespace coppice::families::detail {

namespace {

using Names = std::span<const std::string_view>;

constexpr std::string_view kExpertNames[] = {"num_experts",       "num_local_experts",  "n_routed_experts",
                                             "moe_num_experts",   "num_routed_experts", "n_experts",
                                             "num_moe_experts",   "moe_n_experts",      "moe_num_local_experts",
                                             "num_experts_total", "total_experts",      "total_num_experts"};
constexpr std::string_view kTopKNames[] = {"num_experts_per_tok",
                                           "num_experts_per_token",
                                           "moe_topk",
                                           "moe_top_k",
                                           "moe_k",
                                           "top_k_experts",
                                           "num_selected_experts",
                                           "moe_router_topk",
                                           "router_topk",
                                           "router_top_k",
                                           "experts_per_token",
                                           "num_activated_experts",
                                           "n_activated_experts",
                                           "num_experts_top_k"};
constexpr std::string_view kWidthNames[] = {
    "moe_intermediate_size",  "expert_intermediate_size", "moe_expert_intermediate_size",
    "expert_ffn_hidden_size", "moe_ffn_hidden_size",      "moe_ffn_hidden_dim",
    "expert_hidden_size"};

// Words in names of keys that mention experts but count something else.
constexpr std::string_view kNotExperts[] = {
    "per_tok", "topk",         "top_k",    "shared",   "share_", "group",    "size",   "dim",      "width",
    "period",  "offset",       "capacity", "zero",     "layer",  "dropout",  "rank",   "interval", "freq",
    "hidden",  "intermediate", "start",    "end_",     "index",  "idx",      "redund", "bias",     "activ",
    "select",  "used",         "loss",     "parallel", "step",   "copies",   "skip",   "null",     "latent",
    "_type",   "limit",        "chunk",    "block",    "scal",   "threshold"};
constexpr std::string_view kNotTopK[] = {"group", "method", "index", "norm", "prob", "shared", "layer",
                                         "size",  "loss",   "scal",  "bias", "type", "noise"};
constexpr std::string_view kNotWidth[] = {"shared", "share_", "latent", "router", "act", "size_mlp", "layer", "dense"};

Names names_of(Count count) {
  switch (count) {
    case Count::kExperts: return kExpertNames;
    case Count::kTopK: return kTopKNames;
    case Count::kExpertWidth: return kWidthNames;
  }
  return {};
}

/// "num_experts_per_layer" counts experts, "expert_layer_period" layers.
std::string without_by_layer(std::string name) {
  for (const std::string_view by : {"_per_layer", "_by_layer"}) {
    if (const size_t at = name.find(by); at != std::string::npos) name.erase(at, by.size());
  }
  return name;
}

bool speaks_of(const std::string& name, Count count) {
  const auto has = [&name](std::string_view word) { return name.find(word) != std::string::npos; };
  switch (count) {
    case Count::kExperts: return has("expert") && !contains_any(without_by_layer(name), kNotExperts);
    case Count::kTopK: {
      const bool of_experts = has("expert") && (has("per_tok") || has("activ") || has("select"));
      const bool is_sampling = name == "top_k";  // generation settings in old files
      return (has("topk") || has("top_k") || of_experts) && !is_sampling && !contains_any(name, kNotTopK);
    }
    case Count::kExpertWidth: {
      const bool is_width = has("intermediate") || has("ffn") || has("hidden") || has("width");
      return is_width && (has("expert") || has("moe")) && !contains_any(name, kNotWidth);
    }
  }
  return false;
}

std::vector<std::string_view> own_keys(const Family& family, Count count) {
  switch (count) {
    case Count::kExperts: return {family.experts_keys.begin(), family.experts_keys.end()};
    case Count::kTopK: return {family.top_k_key};
    case Count::kExpertWidth: return {family.expert_width_key};
  }
  return {};
}

int64_t number_of(const ModelConfig& config, Count count) {
  switch (count) {
    case Count::kExperts: return config.num_experts;
    case Count::kTopK: return config.top_k;
    case Count::kExpertWidth: return config.expert_width;
  }
  return 0;
}

/// The integer that a value represents, in any spelling: 8, 8.0, "8".
std::optional<int64_t> whole_number(const Json& value) {
  if (value.kind() == Json::Kind::kInt) return value.as_int();
  double number = 0;
  if (value.kind() == Json::Kind::kFloat) {
    number = value.as_double();
  } else if (value.is_string()) {
    const std::string& text = value.as_string();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  } else {
    return std::nullopt;
  }
  constexpr double kMost = 1e9;
  if (!(std::abs(number) < kMost) || number != std::floor(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

/// `number`, written in the same way as `value`.
Json with_number(const Json& value, int64_t number) {
  if (value.kind() == Json::Kind::kFloat) return {static_cast<double>(number)};
  return value.is_string() ? Json(std::to_string(number)) : Json(number);
}

bool is_numbered(const Json& map) {
  return !map.members().empty() && std::ranges::all_of(map.members(), [](const auto& member) {
    return member.first.find_first_not_of("0123456789") == std::string::npos;
  });
}

// Whether the value is the number, or a list or map by layer with that number or 0: [0, 64, 64], {"1": 64}.
bool repeats(const Json& value, int64_t number) {
  if (const auto whole = whole_number(value)) return *whole == number;
  bool has_number = false;
  const auto fits = [&](const Json& item) {
    const auto whole = whole_number(item);
    has_number = has_number || whole == number;
    return whole && (*whole == number || *whole == 0);
  };
  if (value.is_array()) return std::ranges::all_of(value.items(), fits) && has_number;
  if (!value.is_object() || !is_numbered(value)) return false;
  return std::ranges::all_of(value.members(), [&](const auto& member) { return fits(member.second); }) && has_number;
}

void apply(Json& value, const std::function<int64_t(int64_t)>& edit) {
  if (const auto whole = whole_number(value)) {
    if (*whole != 0) value = with_number(value, edit(*whole));
  } else if (value.is_array()) {
    Json edited = Json::array();
    for (Json item : value.items()) {
      apply(item, edit);
      edited.push_back(std::move(item));
    }
    value = std::move(edited);
  } else if (value.is_object()) {
    Json::Object edited = value.members();
    for (auto& member : edited) apply(member.second, edit);
    value = Json::object(std::move(edited));
  }
}

class Editor {
 public:
  Editor(const ModelConfig& config, Count count, const std::function<int64_t(int64_t)>& edit)
      : config_(config), count_(count), edit_(edit), number_(number_of(config, count)) {
    for (const std::string_view key : own_keys(*config.family, count)) {
      own_.emplace_back(key);
      if (!config.text_key.empty()) own_.push_back(cat(config.text_key, ".", key));
    }
  }

  void edit_all(Json& json) {
    const Json* part = config_.text_key.empty() ? &json : json.find(config_.text_key);
    for (const std::string_view key : own_keys(*config_.family, count_)) {
      const Json* found = find_path(*part, key);
      if (found != nullptr && found->is_array()) list_ = *found;
    }
    // A key with a general name for width may belong to dense layers, so only the family's own key is edited.
    if (count_ == Count::kExpertWidth) {
      for (Json* object : {&json, config_.text_key.empty() ? nullptr : json.find(config_.text_key)}) {
        Json* found = object == nullptr ? nullptr : find_path(*object, config_.family->expert_width_key);
        if (found == nullptr || !is_same(*found)) continue;
        apply(*found, edit_);
        edited_.push_back(found);
      }
    }
    visit(json, {}, false);
  }

 private:
  bool is_same(const Json& value) const { return repeats(value, number_) || (!list_.is_null() && value == list_); }

  bool is_tower(std::string_view key, const Json& object) const {
    if (key == config_.text_key) return false;
    return speaks_of_a_tower(key) || (!config_.text_key.empty() && object.find("model_type") != nullptr);
  }

  /// Whether a list or map has one entry per expert. Other lists below a key that mentions experts (widths, or top-K by
  /// layer) have that length only if there are as many layers as experts.
  bool has_one_of_each(std::string_view key, const Json& value) const {
    if (count_ != Count::kExperts || number_ < 2) return false;
    const bool is_list = value.is_array(), is_map = value.is_object() && is_numbered(value);
    if (!is_list && !is_map) return false;
    if (std::cmp_not_equal(is_list ? value.items().size() : value.members().size(), number_)) return false;
    const std::string name = lower(key);
    if (name.find("shared") != std::string::npos) return false;
    constexpr std::string_view kByLayer[] = {"layer", "per_tok", "topk", "top_k", "size", "dim", "width", "hidden"};
    return number_ != config_.num_layers || !contains_any(name, kByLayer);
  }

  void visit(Json& json, const std::string& place, bool of_experts) {
    const auto has_inside = [](const Json& item) { return item.is_object() || item.is_array(); };
    if (json.is_array() && std::ranges::any_of(json.items(), has_inside)) {
      Json visited = Json::array();
      for (Json item : json.items()) {
        visit(item, place, of_experts);
        visited.push_back(std::move(item));
      }
      json = std::move(visited);
    }
    if (!json.is_object()) return;
    for (size_t i = 0; i < json.members().size(); ++i) {
      const std::string& key = json.members()[i].first;
      Json& value = json.value_at(i);
      const std::string path = place.empty() ? key : cat(place, ".", key);
      if (value.is_object() && is_tower(key, value)) continue;
      if (std::ranges::find(edited_, &value) != edited_.end()) continue;
      if (io::numbered_expert(key)) continue;  // it describes a single expert
      const bool below_experts = of_experts || lower(key).find("expert") != std::string::npos;
      if (!is_same(value)) {
        if (below_experts && has_one_of_each(key, value)) refuse_list(path, value);
        visit(value, path, below_experts);
        continue;
      }
      const bool is_own = count_ != Count::kExpertWidth && std::ranges::find(own_, path) != own_.end();
      KeyMeaning meaning = is_own ? KeyMeaning::kSame : meaning_of(key, count_);
      constexpr std::string_view kOfRouters[] = {"moe", "router", "expert",
                                                 "ffn"};  // elsewhere top_k is a setting of sampling
      if (count_ == Count::kTopK && key == "top_k" && contains_any(lower(place), kOfRouters))
        meaning = KeyMeaning::kMaybe;
      if (meaning == KeyMeaning::kSame) apply(value, edit_);
      if (meaning == KeyMeaning::kMaybe) refuse(path, value);
      if (meaning == KeyMeaning::kOther && below_experts && has_one_of_each(key, value)) refuse_list(path, value);
    }
  }

  [[noreturn]] void refuse(const std::string& path, const Json& value) const {
    constexpr std::string_view kWhat[] = {"the number of experts", "the number of experts per token",
                                          "the width of an expert"};
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", path, "' is ", value.dump(), ", which is ", kWhat[static_cast<size_t>(count_)],
                    ", but coppice does not know whether to change it too (remove the key if nothing reads it, or add "
                    "it to experts_keys in a family file)"));
  }

  [[noreturn]] void refuse_list(const std::string& path, const Json& value) const {
    constexpr size_t kShown = 60;
    const std::string text = value.dump();
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", path, "' is ", text.size() > kShown ? text.substr(0, kShown) + " ..." : text,
                    ", with one entry per expert, but coppice does not know the entries for new experts (remove the "
                    "key if nothing reads it)"));
  }

  const ModelConfig& config_;
  const Count count_;
  const std::function<int64_t(int64_t)>& edit_;
  const int64_t number_;
  Json list_;                     // the family's own value if it is a list
  std::vector<std::string> own_;  // places of the family's own keys
  std::vector<const Json*> edited_;
};

}  // namespace

bool speaks_of_a_tower(std::string_view name) {
  constexpr std::string_view kTowers[] = {"vision", "audio",  "speech",   "image", "video",
                                          "visual", "talker", "code2wav", "tower", "projector"};
  return contains_any(lower(name), kTowers);
}

KeyMeaning meaning_of(std::string_view key, Count count) {
  const std::string name = lower(key);
  const Names names = names_of(count);
  if (std::ranges::find(names, std::string_view(name)) != names.end()) return KeyMeaning::kSame;
  return speaks_of(name, count) ? KeyMeaning::kMaybe : KeyMeaning::kOther;
}

std::vector<std::string_view> keys_present(const ConfigReader& in, const Family& family, Count count) {
  std::vector<std::string_view> keys;
  const auto add = [&](std::string_view key) {
    if (!key.empty() && in.find(key) != nullptr && std::ranges::find(keys, key) == keys.end()) keys.push_back(key);
  };
  const auto own = own_keys(family, count);
  for (const std::string_view key : own) add(key);
  const bool is_nested = !own.empty() && own.front().find('.') != std::string_view::npos;
  if (count != Count::kExpertWidth && !is_nested) {
    for (const std::string_view name : names_of(count)) add(name);
  }
  return keys;
}

void refuse_difference(const ConfigReader& in, std::string_view key, std::string_view other) {
  in.refuse(key,
            cat("the value of '", other, "', ", in.at(other).dump(), " (both mean the same; correct the wrong one)"));
}

void edit_count(Json& json, const ModelConfig& config, Count count, const std::function<int64_t(int64_t)>& edit) {
  Editor(config, count, edit).edit_all(json);
}

}  // namespace coppice::families::detail
