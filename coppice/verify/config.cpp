#include "coppice/verify/config.h"

#include <algorithm>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "coppice/base/text.h"
#include "coppice/families/rope.h"
#include "coppice/verify/rope_keys_detail.h"
#include "coppice/verify/same_value_detail.h"

namespace coppice::verify {
namespace {

using families::ModelConfig;

/// Keys that describe the program that wrote the file, not the model.
constexpr std::string_view kOfTheWriter[] = {"transformers_version", "_name_or_path", "_from_model_config",
                                             "_commit_hash"};

/// The key that names code which runs when the model is loaded.
constexpr std::string_view kRemoteCode = "auto_map";

/// Default values that transformers leaves out when it writes a configuration.
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

/// Keys whose default is null in every class of transformers that has them.
constexpr std::string_view kNullIfLeftOut[] = {"architectures",
                                               "attn_config",
                                               "audio_config",
                                               "clip_qkv",
                                               "dtype",
                                               "ffn_act_fn",
                                               "ffn_config",
                                               "final_logit_softcapping",
                                               "id2label",
                                               "indexer_types",
                                               "label2id",
                                               "layer_rope_theta",
                                               "layer_types",
                                               "layers_block_type",
                                               "mlp_layer_types",
                                               "mlp_only_layers",
                                               "moe_jitter_eps",
                                               "moe_latent_size",
                                               "moe_layers",
                                               "no_rope_layers",
                                               "position_embedding_type",
                                               "prefix_dense_intermediate_size",
                                               "problem_type",
                                               "qk_head_dim",
                                               "use_bidirectional_attention",
                                               "num_attention_heads_per_layer",
                                               "text_config",
                                               "vision_config",
                                               "transformers_version",
                                               "mtp_layers_block_type",
                                               "projector_patch_to_query_dict",
                                               "torch_dtype",
                                               "attention_chunk_size",
                                               "sliding_window"};  // families with another default: Family::left_out

/// Keys that `nn` reads for the families that it supports; they are compared by their meaning.
constexpr std::string_view kComparedAsRead[] = {"sliding_window", "max_window_layers", "num_key_value_heads",
                                                "head_dim"};

bool is_granted(std::string_view key, const Json& value) {
  return std::ranges::any_of(kGranted, [&](const Granted& g) { return g.key == key && value.dump() == g.value; });
}

bool same_rope(const families::Rope& a, const families::Rope& b) {
  const auto all = [](const families::Rope& r) {
    return std::tie(r.scaling, r.theta, r.dim, r.interleaved, r.factor, r.attention_factor, r.max_positions,
                    r.original_positions, r.beta_fast, r.beta_slow, r.truncate, r.low_freq_factor, r.high_freq_factor,
                    r.short_factors, r.long_factors, r.softmax_factor);
  };
  return all(a) == all(b);
}

/// Differences of the values that this family's table reads, except numbers, which are compared key by key.
std::vector<std::string> differences_as_read(const ModelConfig& a, const ModelConfig& b) {
  std::vector<std::string> out;
  const auto compare = [&out](std::string_view what, const auto& was, const auto& is) {
    if (was != is) out.push_back(cat("config.json: ", what, ": ", is, ", wanted ", was));
  };
  const auto same = [&out](std::string_view what, bool equal) {
    if (!equal) out.push_back(cat("config.json: ", what, " differ"));
  };
  compare("experts", a.num_experts, b.num_experts);
  compare("experts per token", a.top_k, b.top_k);
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
  same("experts per token by layer", a.top_k_by_layer == b.top_k_by_layer);
  const families::Routing &r = a.routing, &s = b.routing;
  compare("gates renormalised", r.renormalise, s.renormalise);
  compare("norm of the gates", r.gate_norm, s.gate_norm);
  compare("router groups", r.num_groups, s.num_groups);
  compare("router groups chosen", r.top_groups, s.top_groups);
  compare("routed scaling factor", r.routed_scaling, s.routed_scaling);
  compare("choices other than experts", r.trailing_choices, s.trailing_choices);
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

/// Compares keys by name, except those that have their own rules.
class KeyComparison {
 public:
  /// `sizes`: the object that the family's table reads.
  KeyComparison(std::string_view file, const families::Family* family, const Json* sizes)
      : file_(file), family_(family), sizes_(sizes) {
    if (family != nullptr && !family->left_out.empty()) left_out_ = Json::parse(family->left_out, "left_out");
  }

  void compare(const Json& wanted, const Json& found, const std::string& inside, ConfigDifferences& out) const {
    const bool as_read = &wanted == sizes_ && family_ != nullptr && !family_->surgery_only;
    if (!as_read) compare_ropes(wanted, found, inside, out);
    std::set<std::string> keys;
    for (const auto& [key, value] : wanted.members()) keys.insert(canonical(key));
    for (const auto& [key, value] : found.members()) keys.insert(canonical(key));
    for (const std::string& key : keys) {
      if (contains(kOfTheWriter, key) || contains(detail::kRopeKeys, key)) continue;
      const Json *was = find(wanted, key), *is = find(found, key);
      if (was == nullptr || is == nullptr) {
        const bool is_null = (was != nullptr ? was : is)->is_null();
        if (!(as_read && is_null && contains(kComparedAsRead, key)))
          compare_with_absent(key, was, is, &wanted == sizes_, inside, out);
      } else if (was->is_object() && is->is_object()) {
        compare(*was, *is, cat(inside, key, "."), out);
      } else if (!detail::same_value(*was, *is)) {
        out.problems.push_back(cat(file_, ": '", inside, key, "' is ", is->dump(), "; wanted ", was->dump()));
      }
    }
  }

  void compare_ropes(const Json& wanted, const Json& found, const std::string& inside, ConfigDifferences& out) const {
    const families::Family* family = &wanted == sizes_ ? family_ : nullptr;
    const auto was = detail::ropes_of(wanted, family), is = detail::ropes_of(found, family);
    if (detail::same_ropes(was, is)) return;
    const bool said_nothing =
        std::ranges::none_of(detail::kRopeKeys, [&](auto k) { return wanted.find(k) != nullptr; });
    const bool scales = std::ranges::any_of(is, [](const auto& rope) { return rope.second.find("rope_type"); });
    if (!said_nothing || scales || knows_ropes(family)) return tell_ropes(wanted, found, inside, out);
    for (const std::string_view key : detail::kRopeKeys) {
      if (found.find(key) != nullptr) out.added.push_back(cat(inside, key));
    }
  }

  /// Reports differences of rotary embeddings, by key if both files have it.
  void tell_ropes(const Json& wanted, const Json& found, const std::string& inside, ConfigDifferences& out) const {
    const size_t before = out.problems.size();
    for (const std::string_view key : detail::kRopeKeys) {
      const Json *was = wanted.find(key), *is = found.find(key);
      if (was == nullptr || is == nullptr || detail::same_value(*was, *is)) continue;
      out.problems.push_back(cat(file_, ": '", inside, key, "' is ", is->dump(), "; wanted ", was->dump()));
    }
    if (out.problems.size() > before) return;
    const families::Family* family = &wanted == sizes_ ? family_ : nullptr;
    out.problems.push_back(
        cat(file_, ": ", inside, "rotary embeddings are ", text(found, family), "; wanted ", text(wanted, family)));
  }

 private:
  static bool contains(std::span<const std::string_view> list, std::string_view key) {
    return std::ranges::find(list, key) != list.end();
  }
  static bool knows_ropes(const families::Family* family) { return family != nullptr && !family->from_file; }
  static std::string text(const Json& object, const families::Family* family) {
    Json all = Json::object();
    for (const auto& [type, rope] : detail::ropes_of(object, family)) all[type.empty() ? "all" : type] = rope;
    return all.dump();
  }
  /// One of the files leaves the key out; `is_sizes`: whether the family's own defaults apply.
  void compare_with_absent(const std::string& key, const Json* was, const Json* is, bool is_sizes,
                           const std::string& inside, ConfigDifferences& out) const {
    const Json& said = was != nullptr ? *was : *is;
    const Json* means = is_sizes ? left_out_.find(key) : nullptr;
    if (means != nullptr) {
      if (detail::same_value(said, *means)) return;
      const std::string absent = cat("absent, which means ", means->dump());
      out.problems.push_back(cat(file_, ": '", inside, key, "' is ", is != nullptr ? is->dump() : absent, "; wanted ",
                                 was != nullptr ? was->dump() : absent));
    } else if (said.is_null()) {
      const bool is_same = family_ == nullptr || contains(kNullIfLeftOut, key);
      if (!is_same) out.null_or_absent.push_back(cat(inside, key));
    } else if (was == nullptr && key == kRemoteCode) {
      out.problems.push_back(cat(file_, ": '", inside, key, "' is ", is->dump(), "; wanted no such key"));
    } else if (was == nullptr) {
      out.added.push_back(cat(inside, key));
    } else if (!is_granted(key, *was)) {
      out.problems.push_back(cat(file_, ": '", inside, key, "' is absent; wanted ", was->dump()));
    }
  }
  /// Other names of the same key: for the dtype, and the family's for the number of experts.
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
  const Json* sizes_;
  Json left_out_ = Json::object();
};

const Json& sizes_of(const ModelConfig& config) {
  return config.text_key.empty() ? config.json : *config.json.find(config.text_key);
}

/// Whether families::Rope has everything that the configuration says about rotary embeddings.
bool is_read_whole(const ModelConfig& config) {
  const int64_t head_dim = config.latent ? config.latent->turned_dim : config.head_dim;
  return families::read_rope(sizes_of(config), "config.json", *config.family, head_dim, config.max_positions)
      .unsupported.empty();
}

}  // namespace

std::vector<std::string> ConfigDifferences::not_compared(std::string_view file) const {
  std::vector<std::string> out;
  if (!added.empty()) out.push_back(cat("new keys of ", file, " (", join(added), ")"));
  if (!null_or_absent.empty()) {
    out.push_back(
        cat("keys of ", file, " that are null before or after and absent in the other (", join(null_or_absent), ")"));
  }
  return out;
}

ConfigDifferences compare_configs(const ModelConfig& wanted, const ModelConfig& found) {
  ConfigDifferences out;
  if (wanted.family->model_type != found.family->model_type) {
    out.problems.push_back(cat("config.json: 'model_type' is ", found.json.at("model_type").dump(), "; wanted ",
                               wanted.json.at("model_type").dump()));
    return out;
  }
  const KeyComparison comparison("config.json", wanted.family, &sizes_of(wanted));
  if (!wanted.family->surgery_only) {
    if (!same_rope(wanted.rope, found.rope)) {
      comparison.tell_ropes(sizes_of(wanted), sizes_of(found), {}, out);
    } else if (!is_read_whole(wanted) || !is_read_whole(found)) {
      comparison.compare_ropes(sizes_of(wanted), sizes_of(found), {}, out);
    }
  }
  ConfigDifferences keys;
  comparison.compare(wanted.json, found.json, {}, keys);
  if (keys.problems.empty() && out.problems.empty()) {  // effects of added or removed keys
    for (std::string& problem : differences_as_read(wanted, found)) out.problems.push_back(std::move(problem));
  }
  std::ranges::move(keys.problems, std::back_inserter(out.problems));
  std::ranges::move(keys.added, std::back_inserter(out.added));
  out.null_or_absent = std::move(keys.null_or_absent);
  return out;
}

ConfigDifferences compare_settings(std::string_view file, const Json& wanted, const Json& found) {
  ConfigDifferences out;
  KeyComparison(file, nullptr, nullptr).compare(wanted, found, {}, out);
  return out;
}

}  // namespace coppice::verify
