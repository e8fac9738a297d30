// config.json of a converted model: every key that transformers 5.17.0 reads for the new family, with the value or
// meaning that it had in the old one.

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/convert/config_detail.h"
#include "coppice/io/dtype.h"

namespace coppice::convert::detail {
namespace {

using families::Family;
using families::ModelConfig;
using families::Role;
using families::SlidingWindow;
using families::Switch;

constexpr std::string_view kSliding = "sliding_attention", kFull = "full_attention";

/// A key's value; nullptr if it is absent or null.
const Json* find(const ModelConfig& config, std::string_view key) {
  const Json* value = config.json.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::vector<int64_t> windows_of(const ModelConfig& config) {
  std::vector<int64_t> windows = config.window;
  for (int64_t& window : windows) {
    if (window >= config.max_positions) window = 0;  // it excludes no position
  }
  return windows;
}

// -- writing ----------------------------------------------------------

void carry(const ModelConfig& from, std::initializer_list<std::string_view> keys, Json& to) {
  for (const std::string_view key : keys) {
    if (const Json* value = from.json.find(key)) to[key] = *value;
  }
}

/// Writes the old configuration's RoPE in both generations of keys.
void write_rope(const ModelConfig& from, const Family& family, Json& to, std::vector<std::string>& losses) {
  const Json* parameters = find(from, "rope_parameters");
  if (parameters != nullptr && parameters->find(kFull) != nullptr)
    losses.push_back(
        cat("'rope_parameters' for each type of layer: ", family.model_type, " has only one set for all layers"));
  carry(from, {"rope_scaling", "original_max_position_embeddings"}, to);
  Json* place = &to;
  if (parameters != nullptr) {
    to["rope_parameters"] = *parameters;
    place = &to["rope_parameters"];
  }
  if (parameters == nullptr || parameters->find("rope_theta") == nullptr) (*place)["rope_theta"] = from.rope.theta;
  if (family.has_partial_rotary) (*place)["partial_rotary_factor"] = 1.0;
}

/// Writes the keys that all decoders of these families have.
Json decoder_config(const ModelConfig& from, const Family& family, bool tied, std::vector<std::string>& losses) {
  Json c = Json::object();
  c["architectures"] = Json::array({Json(family.architecture)});
  c["model_type"] = family.model_type;
  carry(from, {"dtype", "torch_dtype"}, c);
  c["vocab_size"] = from.vocab_size;
  c["hidden_size"] = from.model_dim;
  c["num_hidden_layers"] = from.num_layers;
  c["num_attention_heads"] = from.num_heads;
  c["num_key_value_heads"] = from.num_kv_heads;
  c["head_dim"] = from.head_dim;
  const Json* activation = find(from, "hidden_act");
  c["hidden_act"] = activation != nullptr ? *activation : Json(from.family->hidden_act_fallback);
  c["max_position_embeddings"] = from.max_positions;
  c["rms_norm_eps"] = from.rms_eps;
  write_rope(from, family, c, losses);
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

void write_biases(const ModelConfig& from, const Family& family, Json& to) {
  if (family.qkv_bias.kind != Switch::Kind::kKey) return;
  // Older versions do not know qwen2_moe's own switch; with zero biases all versions agree.
  to[family.qkv_bias.key] = from.qkv_bias || from.output_bias || family.qkv_bias.fallback;
}

std::string layers_text(const std::vector<int64_t>& windows) {
  const auto local = std::ranges::count_if(windows, [](int64_t w) { return w > 0; });
  return cat(local, " of ", windows.size(), " layers");
}

void write_windows(const ModelConfig& from, WindowKeys keys, std::string_view model_type, Json& to,
                   std::vector<std::string>& losses) {
  const std::vector<int64_t> windows = windows_of(from);
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
  if (family.aux_loss_fallback > 0) to[family.aux_loss_key] = family.aux_loss_fallback;
}

/// The value rounded to the dtype in which the model multiplies by it.
double as_stored(double value, std::string_view dtype) {
  const auto single = static_cast<float>(value);
  if (dtype == "bfloat16") return static_cast<double>(io::f32_from_bf16(io::bf16_from_f32(single)));
  if (dtype == "float16") return static_cast<double>(io::f32_from_f16(io::f16_from_f32(single)));
  return value;
}

}  // namespace

bool folds_embedding_scale(const ModelConfig& dense, const Family& family) {
  return dense.embedding_multiplier != 1 && family.multipliers.embedding.empty();
}

Json moe_config(const ModelConfig& dense, const ConversionPlan& plan, std::vector<std::string>& losses) {
  const Family& family = families::family_of(plan.to);
  const MoeFamily& row = moe_family(plan.to);
  Json c = decoder_config(dense, family, dense.tied && !folds_embedding_scale(dense, family), losses);
  write_token_ids(dense, c);
  write_biases(dense, family, c);
  if (family.qk_norm_on.kind == Switch::Kind::kKey) c[family.qk_norm_on.key] = dense.qk_norm != families::QkNorm::kNone;
  write_windows(dense, row.windows, plan.to, c, losses);
  write_experts(dense, family, plan, c);
  const families::Multipliers& keys = family.multipliers;
  if (!keys.embedding.empty()) c[keys.embedding] = as_stored(dense.embedding_multiplier, dense.dtype);
  if (!keys.attention.empty()) c[keys.attention] = dense.attention_scale;
  if (!keys.residual.empty()) c[keys.residual] = 1.0;
  if (!keys.logits.empty()) c[keys.logits] = 1.0;
  return c;
}

Json dense_config(const ModelConfig& moe, const Family& family, std::vector<std::string>& losses) {
  Json c = decoder_config(moe, family, moe.tied, losses);
  write_token_ids(moe, c);
  write_biases(moe, family, c);
  c[family.dense_width_key] = moe.expert_width;
  const bool can_window = family.sliding_window == SlidingWindow::kIfSet;
  write_windows(moe, can_window ? WindowKeys::kPlain : WindowKeys::kNone, family.model_type, c, losses);
  if (family.sliding_window != SlidingWindow::kNever && !can_window) c["use_sliding_window"] = false;
  if (moe.rope.dim != moe.head_dim)
    losses.push_back(cat("'partial_rotary_factor' of ",
                         static_cast<double>(moe.rope.dim) / static_cast<double>(moe.head_dim), ": ", family.model_type,
                         " applies RoPE to all dimensions"));
  const families::Multipliers& keys = moe.family->multipliers;
  const std::tuple<std::string_view, double, double> multipliers[] = {
      {keys.embedding, moe.embedding_multiplier, 1.0},
      {keys.attention, moe.attention_scale, 1 / std::sqrt(static_cast<double>(moe.head_dim))},
      {keys.residual, moe.residual_multiplier, 1.0},
      {keys.logits, moe.logits_divisor, 1.0}};
  for (const auto& [key, value, neutral] : multipliers) {
    if (!key.empty() && std::abs(value - neutral) > 1e-6 * std::abs(neutral))
      losses.push_back(cat("'", key, "' of ", value, ": ", family.model_type, " always has ", neutral));
  }
  return c;
}

}  // namespace coppice::convert::detail
