// config.json of a converted model: every key that transformers 5.17.0 looks at in the new family, with the value that
// the old one had or meant.

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/dtype.h"
#include "coppice/upcycle/convert_config_detail.h"

namespace coppice::upcycle::detail {
namespace {

using families::Family;
using families::ModelConfig;
using families::Role;
using families::SlidingWindow;
using families::Switch;

constexpr std::string_view kSliding = "sliding_attention", kFull = "full_attention";

/// A key's value if it is there and no null.
const Json* find(const ModelConfig& config, std::string_view key) {
  const Json* value = config.json.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

[[noreturn]] void refuse(std::string_view key, const Json& value, std::string_view wanted) {
  throw Error(ErrorCode::kFormat, cat("config.json: '", key, "' is ", value.dump(), "; wanted ", wanted));
}

double number_or(const ModelConfig& config, std::string_view key, double fallback) {
  const Json* value = find(config, key);
  if (value == nullptr) return fallback;
  if (!value->is_number() || !std::isfinite(value->as_double())) refuse(key, *value, "a number");
  return value->as_double();
}

std::vector<int64_t> windows_of(const ModelConfig& config) {
  std::vector<int64_t> windows = config.window;
  for (int64_t& window : windows) {
    if (window >= config.max_positions) window = 0;  // it hides nothing
  }
  return windows;
}

std::string activation_of(const ModelConfig& config, std::string_view fallback) {
  const Json* value = find(config, "hidden_act");
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) refuse("hidden_act", *value, "a text");
  return value->as_string();
}

double theta_of(const ModelConfig& config) {
  const double top = number_or(config, "rope_theta", config.family->rope_theta_fallback);
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    const Json* nested = find(config, key);
    const Json* theta = nested == nullptr ? nullptr : nested->find("rope_theta");
    if (theta != nullptr && theta->is_number()) return theta->as_double();
  }
  return top;
}

bool has_role(std::span<const families::TensorSlot> slots, std::initializer_list<Role> roles) {
  return std::ranges::any_of(slots,
                             [&](const auto& slot) { return std::ranges::find(roles, slot.role()) != roles.end(); });
}

// -- what is written ----------------------------------------------------------

void carry(const ModelConfig& from, std::initializer_list<std::string_view> keys, Json& to) {
  for (const std::string_view key : keys) {
    if (const Json* value = from.json.find(key)) to[key] = *value;
  }
}

/// RoPE as the old configuration has it, in both generations of keys.
void write_rope(const ModelConfig& from, const Traits& traits, const Family& family, Json& to,
                std::vector<std::string>& losses) {
  const Json* parameters = find(from, "rope_parameters");
  if (parameters != nullptr && parameters->find(kFull) != nullptr)
    losses.push_back(cat("'rope_parameters' for each type of layer: ", family.model_type, " has one for all"));
  carry(from, {"rope_scaling", "original_max_position_embeddings"}, to);
  Json* place = &to;
  if (parameters != nullptr) {
    to["rope_parameters"] = *parameters;
    place = &to["rope_parameters"];
  }
  if (parameters == nullptr || parameters->find("rope_theta") == nullptr) (*place)["rope_theta"] = traits.rope_theta;
  if (family.has_partial_rotary) (*place)["partial_rotary_factor"] = 1.0;
}

/// The share of a head's dimensions that RoPE turns.
double rotary_share(const ModelConfig& config) {
  if (!config.family->has_partial_rotary) return 1;
  const Json* nested = find(config, "rope_parameters");
  const Json* share = nested == nullptr ? nullptr : nested->find("partial_rotary_factor");
  if (share != nullptr && share->is_number()) return share->as_double();
  return number_or(config, "partial_rotary_factor", config.family->partial_rotary_fallback);
}

/// The keys that all decoders of these families have.
Json decoder_config(const ModelConfig& from, const Traits& traits, const Family& family, bool tied,
                    std::vector<std::string>& losses) {
  Json c = Json::object();
  c["architectures"] = Json::array({Json(family.architecture)});
  c["model_type"] = family.model_type;
  carry(from, {"dtype", "torch_dtype"}, c);
  c["vocab_size"] = from.vocab_size;
  c["hidden_size"] = from.model_dim;
  c["num_hidden_layers"] = from.num_layers;
  c["num_attention_heads"] = from.num_heads;
  c["num_key_value_heads"] = traits.num_kv_heads;
  c["head_dim"] = traits.head_dim;
  c["hidden_act"] = traits.activation;
  c["max_position_embeddings"] = from.max_positions;
  c["rms_norm_eps"] = traits.rms_eps;
  write_rope(from, traits, family, c, losses);
  carry(from, {"initializer_range", "attention_dropout", "use_cache"}, c);
  c["tie_word_embeddings"] = tied;
  return c;
}

void write_token_ids(const ModelConfig& from, Json& to) {
  struct Id {
    std::string_view key;
    std::optional<int64_t> DenseFamily::* fallback;
  };
  constexpr Id kIds[] = {
      {"bos_token_id", &DenseFamily::bos}, {"eos_token_id", &DenseFamily::eos}, {"pad_token_id", &DenseFamily::pad}};
  const auto rows = dense_families();
  const auto row = std::ranges::find(rows, from.family->model_type, &DenseFamily::model_type);
  for (const Id& id : kIds) {
    if (const Json* value = from.json.find(id.key)) {
      to[id.key] = *value;
    } else if (row != rows.end()) {
      const auto& fallback = (*row).*id.fallback;
      to[id.key] = fallback ? Json(*fallback) : Json();
    }
  }
}

void write_biases(const Traits& traits, const Family& family, Json& to) {
  if (family.qkv_bias.kind != Switch::Kind::kKey) return;
  // qwen2_moe's own switch is younger than the family: with zeros every reader agrees.
  to[family.qkv_bias.key] = traits.has_attention_bias || family.qkv_bias.fallback;
}

std::string layers_text(const std::vector<int64_t>& windows) {
  const auto local = std::ranges::count_if(windows, [](int64_t w) { return w > 0; });
  return cat(local, " of ", windows.size(), " layers");
}

void write_windows(const Traits& traits, WindowKeys keys, std::string_view model_type, Json& to,
                   std::vector<std::string>& losses) {
  const auto& windows = traits.windows;
  const int64_t window = windows.empty() ? 0 : *std::ranges::max_element(windows);
  const bool all = std::ranges::all_of(windows, [&](int64_t w) { return w == window; });
  const bool can = window == 0 || keys == WindowKeys::kByLayer || (all && keys != WindowKeys::kNone);
  if (!can) {
    losses.push_back(cat("'sliding_window' of ", window, " positions in ", layers_text(windows), ": ", model_type,
                         keys == WindowKeys::kNone ? " has no local attention" : " has it in all layers or none"));
  }
  const bool on = can && window > 0;
  if (keys == WindowKeys::kNone) return;
  if (keys != WindowKeys::kPlain) to["use_sliding_window"] = on;
  if (keys == WindowKeys::kPlain || on) to["sliding_window"] = on ? Json(window) : Json();
  if (keys != WindowKeys::kByLayer || !on) return;
  Json types = Json::array();
  for (const int64_t w : windows) types.push_back(Json(w > 0 ? kSliding : kFull));
  to["layer_types"] = std::move(types);
}

void write_layers(const ModelConfig& dense, const Family& family, const ConversionPlan& plan, Json& to) {
  if (family.layers == families::LayerPattern::kFirstDense) to["first_k_dense_replace"] = plan.layers.front().layer;
  if (family.layers != families::LayerPattern::kSparseStep) return;
  Json only_dense = Json::array();
  for (int64_t layer = 0; layer < dense.num_layers; ++layer) {
    if (plan.find_layer(layer) == nullptr) only_dense.push_back(Json(layer));
  }
  to["decoder_sparse_step"] = 1;
  to["mlp_only_layers"] = std::move(only_dense);
}

void write_experts(const ModelConfig& dense, const Family& family, const ConversionPlan& plan, Json& to) {
  const int64_t width = dense.dense_width / plan.granularity;
  if (!family.dense_width_key.empty()) to[family.dense_width_key] = dense.dense_width;
  to[family.expert_width_key] = width;
  to[family.experts_keys.front()] = plan.experts;
  to[family.top_k_key] = plan.top_k;
  if (!family.shared_width_key.empty()) to[family.shared_width_key] = plan.shared_width;
  if (!family.shared_count_key.empty()) to[family.shared_count_key] = plan.shared_width / width;
  write_layers(dense, family, plan, to);
  if (family.renormalise.kind == Switch::Kind::kKey) to[family.renormalise.key] = plan.renormalise;
  if (family.has_groups) {
    to[family.num_groups_key] = 1;
    to[family.top_groups_key] = 1;
  }
  if (family.has_routed_scaling) to[family.routed_scaling_key] = 1.0;
  if (family.has_aux_loss) to["router_aux_loss_coef"] = family.aux_loss_fallback;
}

/// The value as a model of this dtype multiplies by it.
double as_stored(double value, std::string_view dtype) {
  const auto single = static_cast<float>(value);
  if (dtype == "bfloat16") return static_cast<double>(io::f32_from_bf16(io::bf16_from_f32(single)));
  if (dtype == "float16") return static_cast<double>(io::f32_from_f16(io::f16_from_f32(single)));
  return value;
}

}  // namespace

Traits traits_of(const ModelConfig& config, std::span<const families::TensorSlot> slots) {
  const Family& family = *config.family;
  const auto rows = dense_families();
  const auto row = std::ranges::find(rows, family.model_type, &DenseFamily::model_type);
  const bool scales = row != rows.end() && row->scales_embeddings;
  const auto or_else = [](int64_t size, int64_t fallback, int64_t last) {
    if (size > 0) return size;
    return fallback > 0 ? fallback : last;
  };
  for (const auto& [key, size] : {std::pair<std::string_view, int64_t>{family.model_dim_key, config.model_dim},
                                  {"num_attention_heads", config.num_heads},
                                  {"vocab_size", config.vocab_size}}) {
    if (size <= 0) throw Error(ErrorCode::kFormat, cat("config.json: '", key, "' is missing"));
  }
  Traits t;
  t.activation = activation_of(config, row == rows.end() ? "silu" : row->activation);
  t.rms_eps = number_or(config, "rms_norm_eps", family.rms_eps_fallback);
  t.rope_theta = theta_of(config);
  t.tied = !has_role(slots, {Role::kLmHead});
  t.has_attention_bias =
      has_role(slots, {Role::kQueryBias, Role::kKeyBias, Role::kValueBias, Role::kAttentionOutputBias});
  t.has_qk_norm = has_role(slots, {Role::kQueryNorm, Role::kKeyNorm});
  t.embedding_scale = scales ? std::sqrt(static_cast<double>(config.model_dim)) : 1;
  t.head_dim = or_else(config.head_dim, family.head_dim_fallback, config.model_dim / config.num_heads);
  t.num_kv_heads = or_else(config.num_kv_heads, family.kv_heads_fallback, config.num_heads);
  t.windows = windows_of(config);
  return t;
}

Json moe_config(const ModelConfig& dense, const Traits& traits, const ConversionPlan& plan,
                std::vector<std::string>& losses) {
  const Family& family = whole_family(plan.to);
  const MoeFamily& row = moe_family(plan.to);
  const bool folds_scale = traits.embedding_scale != 1 && !row.has_multipliers;
  Json c = decoder_config(dense, traits, family, traits.tied && !folds_scale, losses);
  write_token_ids(dense, c);
  write_biases(traits, family, c);
  if (family.qk_norm_on.kind == Switch::Kind::kKey) c[family.qk_norm_on.key] = traits.has_qk_norm;
  write_windows(traits, row.windows, plan.to, c, losses);
  write_experts(dense, family, plan, c);
  if (row.has_multipliers) {
    c["embedding_multiplier"] = as_stored(traits.embedding_scale, dense.dtype);
    c["attention_multiplier"] = 1 / std::sqrt(static_cast<double>(traits.head_dim));
    c["residual_multiplier"] = 1.0;
    c["logits_scaling"] = 1.0;
  }
  return c;
}

Json dense_config(const ModelConfig& moe, const Traits& traits, const Family& family,
                  std::vector<std::string>& losses) {
  Json c = decoder_config(moe, traits, family, traits.tied, losses);
  write_token_ids(moe, c);
  write_biases(traits, family, c);
  c[family.dense_width_key] = moe.expert_width;
  const bool can_window = family.sliding_window == SlidingWindow::kIfSet;
  write_windows(traits, can_window ? WindowKeys::kPlain : WindowKeys::kNone, family.model_type, c, losses);
  if (family.sliding_window != SlidingWindow::kNever && !can_window) c["use_sliding_window"] = false;
  if (const double share = rotary_share(moe); share != 1)
    losses.push_back(cat("'partial_rotary_factor' of ", share, ": ", family.model_type, " turns all dimensions"));
  const MoeFamily& row = moe_family(moe.family->model_type);
  const std::initializer_list<std::pair<std::string_view, double>> multipliers = {
      {"embedding_multiplier", 1.0},
      {"attention_multiplier", 1 / std::sqrt(static_cast<double>(traits.head_dim))},
      {"residual_multiplier", 1.0},
      {"logits_scaling", 1.0}};
  for (const auto& [key, neutral] : multipliers) {
    if (!row.has_multipliers) break;
    const double value = number_or(moe, key, 1.0);
    if (std::abs(value - neutral) > 1e-6 * std::abs(neutral))
      losses.push_back(cat("'", key, "' of ", value, ": ", family.model_type, " has ", neutral));
  }
  return c;
}

}  // namespace coppice::upcycle::detail
