#include <algorithm>
#include <cmath>
#include <utility>

#include "coppice/families/attention_config_detail.h"
#include "coppice/families/limits.h"

namespace coppice::families {

namespace {

using detail::ConfigReader;

constexpr int64_t kLargestDim = int64_t{1} << 31;
constexpr double kLargestNumber = 1e12;

// The attention window of each layer; 0 for layers without local attention.
std::vector<int64_t> read_windows(const ConfigReader& in, const Json& config, const ModelConfig& c) {
  const SlidingWindow kind = c.family->sliding_window;
  std::vector<int64_t> windows(static_cast<size_t>(c.num_layers), 0);
  if (kind == SlidingWindow::kNever || !detail::read_switch(in, c.family->sliding_window_on)) return windows;
  const Json* const given = detail::find_path(config, "sliding_window");
  const int64_t fallback = given != nullptr ? 0 : c.family->sliding_window_fallback;  // null turns it off
  const int64_t window = in.whole_or("sliding_window", fallback, 0, kLargestDim);
  if (window == 0) return windows;
  const int64_t bound = in.whole_or("max_window_layers", c.family->max_window_layers_fallback, 0, kMaxLayers);
  const Json* types = kind != SlidingWindow::kIfSet ? in.find("layer_types") : nullptr;
  const bool fits =
      types == nullptr || (types->is_array() && static_cast<int64_t>(types->items().size()) >= c.num_layers);
  if (!fits) in.refuse("layer_types", "a list with one text per layer");
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const auto i = static_cast<size_t>(layer);
    bool local = true;
    if (types != nullptr) {
      local = types->items()[i] != Json("full_attention");
    } else if (kind == SlidingWindow::kLastLayers) {
      local = layer >= bound;
    } else if (kind == SlidingWindow::kFirstLayers) {
      local = layer % 2 == 0 && layer < bound;
    } else if (kind == SlidingWindow::kAlternating) {
      local = layer % 2 == 0;
    }
    if (local) windows[i] = window;
  }
  return windows;
}

// Latent attention; head_dim becomes the dimension of queries and keys.
void read_latent(const ConfigReader& in, ModelConfig& c) {
  LatentAttention latent;
  latent.query_rank = in.whole_or("q_lora_rank", 0, 1, kLargestDim);
  latent.key_value_rank = in.whole("kv_lora_rank", 1, kLargestDim);
  latent.turned_dim = in.whole("qk_rope_head_dim", 1, kLargestDim);
  latent.plain_dim = in.whole("qk_nope_head_dim", 1, kLargestDim);
  latent.value_dim = in.whole("v_head_dim", 1, kLargestDim);
  if (c.num_kv_heads != c.num_heads)
    in.refuse("num_key_value_heads", cat("the ", c.num_heads, " attention heads, which share their latents"));
  c.head_dim = latent.turned_dim + latent.plain_dim;
  c.latent = latent;
}

Activation read_activation(const ConfigReader& in, ModelConfig& c) {
  constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"silu", Activation::kSilu}, {"swish", Activation::kSilu}, {"gelu_pytorch_tanh", Activation::kGelu}};
  if (c.family->activation != Activation::kSilu) return c.family->activation;
  const std::string name = in.text_or("hidden_act", c.family->hidden_act_fallback);
  const auto* known = std::ranges::find(kNames, name, &std::pair<std::string_view, Activation>::first);
  const bool of_experts = known != std::end(kNames) && known->second != Activation::kSilu && c.is_moe();
  if (known != std::end(kNames) && !of_experts) return known->second;
  c.unsupported_in_nn.push_back(cat("activation '", name, "'"));
  return Activation::kSilu;
}

void read_multipliers(const ConfigReader& in, ModelConfig& c) {
  const Multipliers& keys = c.family->multipliers;
  const auto factor = [&in](std::string_view key, double fallback) {
    return key.empty() ? fallback : in.number_or(key, fallback, -kLargestNumber, kLargestNumber);
  };
  c.embedding_multiplier =
      keys.sqrt_embedding ? std::sqrt(static_cast<double>(c.model_dim)) : factor(keys.embedding, 1);
  c.residual_multiplier = factor(keys.residual, 1);
  c.logits_divisor = factor(keys.logits, 1);
  if (c.logits_divisor == 0) in.refuse(keys.logits, "a number other than 0");
  c.attention_scale = keys.attention.empty() ? 1.0 / std::sqrt(static_cast<double>(c.head_dim)) * c.rope.softmax_factor
                                             : factor(keys.attention, 1);
}

}  // namespace

bool detail::read_switch(const ConfigReader& in, const Switch& s) {
  return s.kind == Switch::Kind::kKey ? in.flag_or(s.key, s.fallback) : s.kind == Switch::Kind::kYes;
}

void detail::read_attention(const Json& config, std::string_view source, ModelConfig& c) {
  const ConfigReader in(config, source);
  const Family& family = *c.family;
  c.qkv_bias = read_switch(in, family.qkv_bias);
  c.output_bias = read_switch(in, family.output_bias);
  c.mlp_bias = read_switch(in, family.mlp_bias);
  c.qk_norm = read_switch(in, family.qk_norm_on) ? family.qk_norm : QkNorm::kNone;
  c.rms_eps = in.number_or("rms_norm_eps", family.rms_eps_fallback, 0, 1);
  if (!family.clip_qkv_key.empty() && in.find(family.clip_qkv_key) != nullptr) {
    c.clip_qkv = in.number_or(family.clip_qkv_key, 0, 0, kLargestNumber);
  }
  if (family.has_latent_attention) read_latent(in, c);
  RopeRead rope = read_rope(config, source, family, c.latent ? c.latent->turned_dim : c.head_dim, c.max_positions);
  c.rope = std::move(rope.rope);
  for (std::string& what : rope.unsupported) c.unsupported_in_nn.push_back(std::move(what));
  c.window = read_windows(in, config, c);
  c.activation = read_activation(in, c);
  read_multipliers(in, c);
  if (in.flag_or("use_bidirectional_attention", false)) c.unsupported_in_nn.emplace_back("bidirectional attention");
}

}  // namespace coppice::families
