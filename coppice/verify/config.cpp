#include "coppice/verify/config.h"

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "coppice/base/text.h"

namespace coppice::verify {
namespace {

using families::ModelConfig;

/// Of the program that wrote the file, not of the model.
constexpr std::string_view kOfTheWriter[] = {"transformers_version", "_name_or_path", "_from_model_config",
                                             "_commit_hash", "auto_map"};

/// Values that transformers takes for granted and leaves out when it writes a configuration.
struct Granted {
  std::string_view key, value;
};
constexpr Granted kGranted[] = {{"return_dict", "true"},
                                {"output_hidden_states", "false"},
                                {"output_attentions", "false"},
                                {"torchscript", "false"},
                                {"use_bfloat16", "false"},
                                {"pruned_heads", "{}"},
                                {"chunk_size_feed_forward", "0"},
                                {"is_encoder_decoder", "false"},
                                {"is_decoder", "false"},
                                {"add_cross_attention", "false"},
                                {"tie_encoder_decoder", "false"},
                                {"tie_word_embeddings", "true"},
                                {"use_cache", "true"}};

// Keys that describe rotary embeddings, in either generation of transformers' files.
constexpr std::string_view kRopeKeys[] = {"rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor",
                                          "rope_local_base_freq"};

bool is_granted(std::string_view key, const Json& value) {
  if (value.is_null()) return true;
  return std::ranges::any_of(kGranted, [&](const Granted& g) { return g.key == key && value.dump() == g.value; });
}

/// Numbers of one value are equal in any spelling, members in any order, and null is as good as absent.
bool same_value(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) return a == b || a.as_double() == b.as_double();
  if (a.is_array() && b.is_array()) return std::ranges::equal(a.items(), b.items(), same_value);
  if (!a.is_object() || !b.is_object()) return a == b;
  const auto holds_all = [](const Json& some, const Json& other) {
    return std::ranges::all_of(some.members(), [&](const Json::Member& member) {
      const Json* found = other.find(member.first);
      return found != nullptr ? same_value(member.second, *found) : member.second.is_null();
    });
  };
  return holds_all(a, b) && holds_all(b, a);
}

/// One kind of rotary embedding: {"rope_type", "rope_theta", ...}, of `parameters` and what stands beside them.
Json rope_of(const Json* parameters, const Json& object) {
  Json rope = Json::object();
  const auto take = [&rope](const std::string& key, const Json& value) {
    if (!value.is_null()) rope[key == "type" ? "rope_type" : key] = value;
  };
  for (const char* key : {"rope_theta", "partial_rotary_factor"}) {
    if (const Json* value = object.find(key)) take(key, *value);
  }
  if (parameters != nullptr && parameters->is_object()) {
    for (const auto& [key, value] : parameters->members()) take(key, value);
  }
  if (const Json* type = rope.find("rope_type"); type != nullptr && *type == Json("default")) rope.erase("rope_type");
  const Json* part = rope.find("partial_rotary_factor");
  if (part != nullptr && part->is_number() && part->as_double() == 1) rope.erase("partial_rotary_factor");
  return rope;
}

/// The rotary embeddings of a configuration by type of layer; under "" where there is one kind for all.
std::map<std::string, Json> ropes_of(const Json& object) {
  const Json* parameters = object.find("rope_parameters");
  if (parameters == nullptr || !parameters->is_object()) parameters = object.find("rope_scaling");
  const bool by_type = parameters != nullptr && parameters->is_object() && !parameters->members().empty() &&
                       std::ranges::all_of(parameters->members(), [](const auto& m) { return m.second.is_object(); });
  if (!by_type) {
    std::map<std::string, Json> ropes = {{"", rope_of(parameters, object)}};
    if (const Json* local = object.find("rope_local_base_freq"); local != nullptr && !local->is_null())
      ropes["sliding_attention"] = Json::object({{"rope_theta", *local}});
    return ropes;
  }
  std::map<std::string, Json> ropes;
  for (const auto& [type, of_type] : parameters->members()) ropes[type] = rope_of(&of_type, Json::object());
  return ropes;
}

/// True if `found` says of every type of layer what `wanted` does; it may say more.
bool says_the_same_rope(const Json& wanted, const Json& found) {
  const auto was = ropes_of(wanted), is = ropes_of(found);
  const auto of_type = [](const std::map<std::string, Json>& ropes, const std::string& type) {
    const auto own = ropes.find(type);
    return own != ropes.end() ? own : ropes.find("");
  };
  std::set<std::string> types;
  for (const auto& [type, rope] : was) types.insert(type);
  for (const auto& [type, rope] : is) types.insert(type);
  if (types.size() > 1 && !(was.contains("") && is.contains(""))) types.erase("");
  return std::ranges::all_of(types, [&](const std::string& type) {
    const auto a = of_type(was, type), b = of_type(is, type);
    if (a == was.end()) return true;  // new: nothing was said of it
    if (b == is.end()) return false;
    return std::ranges::all_of(a->second.members(), [&](const Json::Member& member) {
      const Json* value = b->second.find(member.first);
      return value != nullptr && same_value(member.second, *value);
    });
  });
}

bool same_rope(const families::Rope& a, const families::Rope& b) {
  const auto all = [](const families::Rope& r) {
    return std::tie(r.scaling, r.theta, r.dim, r.interleaved, r.factor, r.attention_factor, r.max_positions,
                    r.original_positions, r.beta_fast, r.beta_slow, r.truncate, r.low_freq_factor, r.high_freq_factor,
                    r.short_factors, r.long_factors, r.softmax_factor);
  };
  return all(a) == all(b);
}

/// What both files mean by what this family's table reads, beside the numbers that every key says for itself.
std::vector<std::string> differences_as_read(const ModelConfig& a, const ModelConfig& b) {
  std::vector<std::string> out;
  const auto compare = [&out](std::string_view what, const auto& was, const auto& is) {
    if (was != is) out.push_back(cat("config.json: ", what, ": ", is, ", wanted ", was));
  };
  const auto same = [&out](std::string_view what, bool equal) {
    if (!equal) out.push_back(cat("config.json: ", what, " differ"));
  };
  compare("experts", a.num_experts, b.num_experts);
  compare("experts a token", a.top_k, b.top_k);
  compare("layers", a.num_layers, b.num_layers);
  compare("hidden size", a.model_dim, b.model_dim);
  compare("vocabulary", a.vocab_size, b.vocab_size);
  compare("heads", a.num_heads, b.num_heads);
  compare("key-value heads", a.num_kv_heads, b.num_kv_heads);
  compare("head dimension", a.head_dim, b.head_dim);
  compare("width of experts", a.expert_width, b.expert_width);
  compare("width of dense layers", a.dense_width, b.dense_width);
  compare("width of shared experts", a.shared_width, b.shared_width);
  compare("positions", a.max_positions, b.max_positions);
  compare("tied embeddings", a.tied, b.tied);
  compare("norm epsilon", a.rms_eps, b.rms_eps);
  compare("attention scale", a.attention_scale, b.attention_scale);
  compare("embedding multiplier", a.embedding_multiplier, b.embedding_multiplier);
  compare("residual multiplier", a.residual_multiplier, b.residual_multiplier);
  compare("logits divisor", a.logits_divisor, b.logits_divisor);
  same("coefficients of the auxiliary loss", a.aux_loss_coef == b.aux_loss_coef);
  same("experts a token by layer", a.top_k_by_layer == b.top_k_by_layer);
  const families::Routing &r = a.routing, &s = b.routing;
  compare("gates renormalised", r.renormalise, s.renormalise);
  compare("norm of the gates", r.gate_norm, s.gate_norm);
  compare("router groups", r.num_groups, s.num_groups);
  compare("router groups chosen", r.top_groups, s.top_groups);
  compare("routed scaling factor", r.routed_scaling, s.routed_scaling);
  compare("choices that are no experts", r.trailing_choices, s.trailing_choices);
  same("gate functions", r.gate == s.gate);
  same("group scores", r.group_score == s.group_score);
  same("layers with experts", a.moe_layer == b.moe_layer);
  same("attention windows", a.window == b.window);
  same("activations", a.activation == b.activation);
  same("biases of attention or feed-forward layers",
       std::tie(a.qkv_bias, a.output_bias, a.mlp_bias) == std::tie(b.qkv_bias, b.output_bias, b.mlp_bias));
  same("norms of queries and keys", a.qk_norm == b.qk_norm);
  same("limits of queries, keys and values", a.clip_qkv == b.clip_qkv);
  return out;
}

/// Keys by name, but for those that have rules of their own.
class KeyComparison {
 public:
  /// `read`: the object whose rotary embeddings the family's table reads, compared elsewhere.
  KeyComparison(std::string_view file, const families::Family* family, const Json* read)
      : file_(file), family_(family), read_(read) {}

  void compare(const Json& wanted, const Json& found, const std::string& inside, ConfigDifferences& out) const {
    if (&wanted != read_) compare_ropes(wanted, found, inside, out);
    std::set<std::string> keys;
    for (const auto& [key, value] : wanted.members()) keys.insert(canonical(key));
    for (const auto& [key, value] : found.members()) keys.insert(canonical(key));
    for (const std::string& key : keys) {
      if (contains(kOfTheWriter, key) || contains(kRopeKeys, key)) continue;
      const Json *was = find(wanted, key), *is = find(found, key);
      if (was != nullptr && is != nullptr) {
        if (same_value(*was, *is)) continue;
        if (was->is_object() && is->is_object()) {
          compare(*was, *is, cat(inside, key, "."), out);
          continue;
        }
      } else if (was == nullptr) {
        if (!is->is_null()) out.added.push_back(cat(inside, key));
        continue;
      } else if (is_granted(key, *was)) {
        continue;
      }
      out.problems.push_back(
          cat(file_, ": '", inside, key, "' is ", is != nullptr ? is->dump() : "absent", " and was ", was->dump()));
    }
  }

  /// What differs in rotary embeddings, by its keys where both files have them.
  void tell_ropes(const Json& wanted, const Json& found, const std::string& inside, ConfigDifferences& out) const {
    const size_t before = out.problems.size();
    for (const std::string_view key : kRopeKeys) {
      const Json *was = wanted.find(key), *is = found.find(key);
      if (was == nullptr || is == nullptr || same_value(*was, *is)) continue;
      out.problems.push_back(cat(file_, ": '", inside, key, "' is ", is->dump(), " and was ", was->dump()));
    }
    if (out.problems.size() > before) return;
    out.problems.push_back(cat(file_, ": ", inside, "rotary embeddings are ", text(found), " and were ", text(wanted)));
  }

 private:
  static bool contains(std::span<const std::string_view> list, std::string_view key) {
    return std::ranges::find(list, key) != list.end();
  }
  static std::string text(const Json& object) {
    Json all = Json::object();
    for (const auto& [type, rope] : ropes_of(object)) all[type.empty() ? "all" : type] = rope;
    return all.dump();
  }
  void compare_ropes(const Json& wanted, const Json& found, const std::string& inside, ConfigDifferences& out) const {
    if (!says_the_same_rope(wanted, found)) return tell_ropes(wanted, found, inside, out);
    for (const std::string_view key : kRopeKeys) {
      const bool is_new = found.find(key) != nullptr && !found.find(key)->is_null();
      const bool was_there = std::ranges::any_of(kRopeKeys, [&](auto k) { return wanted.find(k) != nullptr; });
      if (is_new && !was_there) out.added.push_back(cat(inside, key));
    }
  }
  /// Names that mean the same: the dtype's, and the family's for the number of experts.
  std::vector<std::string_view> names_of(std::string_view key) const {
    if (key == "dtype" || key == "torch_dtype") return {"dtype", "torch_dtype"};
    if (family_ != nullptr && contains(family_->experts_keys, key))
      return {family_->experts_keys.begin(), family_->experts_keys.end()};
    return {key};
  }
  std::string canonical(const std::string& key) const { return std::string(names_of(key).front()); }
  const Json* find(const Json& object, std::string_view key) const {
    for (const std::string_view name : names_of(key)) {
      if (const Json* value = object.find(name)) return value;
    }
    return nullptr;
  }

  std::string_view file_;
  const families::Family* family_;
  const Json* read_;
};

const Json& sizes_of(const ModelConfig& config) {
  return config.text_key.empty() ? config.json : *config.json.find(config.text_key);
}

}  // namespace

ConfigDifferences compare_configs(const ModelConfig& wanted, const ModelConfig& found) {
  ConfigDifferences out;
  if (wanted.family->model_type != found.family->model_type) {
    out.problems.push_back(cat("config.json: 'model_type' is ", found.json.at("model_type").dump(), " and was ",
                               wanted.json.at("model_type").dump()));
    return out;
  }
  const Json* read = wanted.family->surgery_only ? nullptr : &sizes_of(wanted);
  const KeyComparison comparison("config.json", wanted.family, read);
  if (read != nullptr && !same_rope(wanted.rope, found.rope))
    comparison.tell_ropes(sizes_of(wanted), sizes_of(found), {}, out);
  ConfigDifferences keys;
  comparison.compare(wanted.json, found.json, {}, keys);
  if (keys.problems.empty() && out.problems.empty()) {  // what an added or dropped key changed
    for (std::string& problem : differences_as_read(wanted, found)) out.problems.push_back(std::move(problem));
  }
  std::ranges::move(keys.problems, std::back_inserter(out.problems));
  out.added = std::move(keys.added);
  return out;
}

ConfigDifferences compare_settings(std::string_view file, const Json& wanted, const Json& found) {
  ConfigDifferences out;
  KeyComparison(file, nullptr, nullptr).compare(wanted, found, {}, out);
  return out;
}

}  // namespace coppice::verify
