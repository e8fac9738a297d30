#include <algorithm>
#include <array>
#include <cctype>
#include <span>
#include <string>

#include "coppice/families/count_keys_detail.h"

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

// Words of keys that speak of experts and count something else.
constexpr std::string_view kNotExperts[] = {
    "per_tok", "topk",         "top_k",    "shared",   "share_",   "group",   "size",     "dim",      "width",
    "period",  "offset",       "capacity", "zero",     "layer",    "dropout", "rank",     "interval", "freq",
    "hidden",  "intermediate", "start",    "end_",     "index",    "idx",     "redund",   "bias",     "activ",
    "select",  "used",         "loss",     "parallel", "step",     "copies",  "skip",     "null",     "latent",
    "_type",   "limit",        "chunk",    "block",    "physical", "scal",    "threshold"};
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

bool contains_any(std::string_view text, Names words) {
  return std::ranges::any_of(words, [text](std::string_view word) { return text.find(word) != text.npos; });
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

bool speaks_of(const std::string& name, Count count) {
  const auto has = [&name](std::string_view word) { return name.find(word) != std::string::npos; };
  switch (count) {
    case Count::kExperts: return has("expert") && !contains_any(name, kNotExperts);
    case Count::kTopK: {
      const bool of_experts = has("expert") && (has("per_tok") || has("activ") || has("select"));
      const bool is_sampling = name == "top_k";  // generation settings that old files hold
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

// The number, or numbers by layer of which some are none (0): [0, 64, 64].
bool repeats(const Json& value, int64_t number) {
  if (value.kind() == Json::Kind::kInt) return value.as_int() == number;
  if (!value.is_array() || value.items().empty()) return false;
  bool has_number = false;
  for (const Json& item : value.items()) {
    if (item.kind() != Json::Kind::kInt || (item.as_int() != number && item.as_int() != 0)) return false;
    has_number = has_number || item.as_int() == number;
  }
  return has_number;
}

void apply(Json& value, const std::function<int64_t(int64_t)>& edit) {
  if (value.kind() == Json::Kind::kInt) {
    if (value.as_int() != 0) value = Json(edit(value.as_int()));
  } else if (value.is_array()) {
    Json edited = Json::array();
    for (Json item : value.items()) {
      apply(item, edit);
      edited.push_back(std::move(item));
    }
    value = std::move(edited);
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
    // Width is the dense layers' too where it has a general name, so that it counts in its own place alone.
    if (count_ == Count::kExpertWidth) {
      for (Json* object : {&json, config_.text_key.empty() ? nullptr : json.find(config_.text_key)}) {
        Json* found = object == nullptr ? nullptr : find_path(*object, config_.family->expert_width_key);
        if (found == nullptr || !is_same(*found)) continue;
        apply(*found, edit_);
        edited_.push_back(found);
      }
    }
    visit(json, {});
  }

 private:
  bool is_same(const Json& value) const { return repeats(value, number_) || (!list_.is_null() && value == list_); }

  bool is_tower(std::string_view key, const Json& object) const {
    if (key == config_.text_key) return false;
    constexpr std::string_view kOthers[] = {"vision", "audio",  "speech",   "image", "video",
                                            "visual", "talker", "code2wav", "tower", "projector"};
    return contains_any(lower(key), kOthers) || (!config_.text_key.empty() && object.find("model_type") != nullptr);
  }

  void visit(Json& json, const std::string& place) {
    const auto has_inside = [](const Json& item) { return item.is_object() || item.is_array(); };
    if (json.is_array() && std::ranges::any_of(json.items(), has_inside)) {
      Json visited = Json::array();
      for (Json item : json.items()) {
        visit(item, place);
        visited.push_back(std::move(item));
      }
      json = std::move(visited);
    }
    if (!json.is_object()) return;
    std::vector<std::string> keys;
    for (const auto& member : json.members()) keys.push_back(member.first);
    for (const std::string& key : keys) {
      Json& value = *json.find(key);
      const std::string path = place.empty() ? key : cat(place, ".", key);
      if (value.is_object() && is_tower(key, value)) continue;
      if (std::ranges::find(edited_, &value) != edited_.end()) continue;
      if (!is_same(value)) {
        visit(value, path);
        continue;
      }
      const bool is_own = count_ != Count::kExpertWidth && std::ranges::find(own_, path) != own_.end();
      const KeyMeaning meaning = is_own ? KeyMeaning::kSame : meaning_of(key, count_);
      if (meaning == KeyMeaning::kSame) apply(value, edit_);
      if (meaning == KeyMeaning::kMaybe) refuse(path, value);
    }
  }

  [[noreturn]] void refuse(const std::string& path, const Json& value) const {
    constexpr std::string_view kWhat[] = {"the number of experts", "the number of experts a token",
                                          "the width of an expert"};
    throw Error(ErrorCode::kUnsupported,
                cat("config.json: '", path, "' is ", value.dump(), ", which is ", kWhat[static_cast<size_t>(count_)],
                    ", and coppice does not know whether it must change with it (take the key out if nothing reads "
                    "it, or name it in the experts_keys of a family file)"));
  }

  const ModelConfig& config_;
  const Count count_;
  const std::function<int64_t(int64_t)>& edit_;
  const int64_t number_;
  Json list_;                     // the family's own value where it is a list
  std::vector<std::string> own_;  // places of the family's own keys
  std::vector<const Json*> edited_;
};

}  // namespace

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
  in.refuse(key, cat("what '", other, "' says, ", in.at(other).dump(), " (they mean the same; correct the wrong one)"));
}

void edit_count(Json& json, const ModelConfig& config, Count count, const std::function<int64_t(int64_t)>& edit) {
  Editor(config, count, edit).edit_all(json);
}

}  // namespace coppice::families::detail
