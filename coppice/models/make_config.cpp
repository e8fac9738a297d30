#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/models/generate.h"

namespace coppice::models {

using families::Family;
using families::GateFunction;
using families::LayerPattern;
using families::Switch;

namespace {

[[noreturn]] void refuse(const ModelSizes& sizes, std::string_view what) {
  throw Error(ErrorCode::kUsage, cat("a new ", sizes.family, " model: ", what));
}

void check_experts(const ModelSizes& sizes, const Family& family) {
  const bool always = family.renormalise.kind == Switch::Kind::kYes || family.gate == GateFunction::kTopKSoftmax;
  if (sizes.renormalise && family.renormalise.kind != Switch::Kind::kKey && *sizes.renormalise != always) {
    refuse(sizes, cat("the family ", always ? "always" : "never", " renormalises gates"));
  }
  if (sizes.first_dense_layers < 0 || sizes.first_dense_layers >= sizes.num_layers) {
    refuse(sizes, cat(sizes.first_dense_layers, " dense layers of ", sizes.num_layers, " leave no layer with experts"));
  }
  if (family.layers == LayerPattern::kEveryLayer && sizes.first_dense_layers != 0) {
    refuse(sizes, cat("every layer has experts; first_dense_layers is ", sizes.first_dense_layers, ", wanted 0"));
  }
  if (!family.has_shared() && sizes.shared_width != 0)
    refuse(sizes, "the family has no shared expert; wanted a shared width of 0");
  if (!family.shared_count_key.empty() && (sizes.expert_width <= 0 || sizes.shared_width % sizes.expert_width != 0)) {
    refuse(sizes, cat("a shared width of ", sizes.shared_width, " is not a multiple of the expert width ",
                      sizes.expert_width));
  }
}

void check_attention(const ModelSizes& sizes, const Family& family) {
  if (family.fixed_head_dim && sizes.num_heads * sizes.head_dim != sizes.model_dim) {
    refuse(sizes,
           cat(sizes.num_heads, " heads of ", sizes.head_dim, " do not give the model dimension ", sizes.model_dim));
  }
  if (family.has_latent_attention && sizes.num_kv_heads != sizes.num_heads) {
    refuse(sizes, cat(sizes.num_kv_heads, " key-value heads; wanted as many as heads, ", sizes.num_heads,
                      ", which share their latents"));
  }
  if (sizes.num_heads <= 0 || sizes.model_dim % sizes.num_heads != 0) {
    refuse(sizes, cat("the model dimension ", sizes.model_dim, " is not a multiple of ", sizes.num_heads, " heads"));
  }
  // RoPE is applied to half of the head, in pairs
  const int64_t turned = family.has_partial_rotary || family.has_latent_attention ? 4 : 2;
  if (sizes.head_dim % turned != 0)
    refuse(sizes, cat("a head width of ", sizes.head_dim, " is not a multiple of ", turned));
}

std::string_view dtype_key(io::Dtype dtype) {
  switch (dtype) {
    case io::Dtype::kF32: return "float32";
    case io::Dtype::kBf16: return "bfloat16";
    case io::Dtype::kF16: return "float16";
    default:
      throw Error(ErrorCode::kUsage, cat("weights of dtype ", io::dtype_name(dtype), "; wanted F32, BF16 or F16"));
  }
}

void add_experts(const ModelSizes& sizes, const Family& family, Json& c) {
  c[family.experts_keys.front()] = sizes.num_experts;
  c[family.top_k_key] = sizes.top_k;
  c[family.expert_width_key] = sizes.expert_width;
  if (!family.shared_width_key.empty()) c[family.shared_width_key] = sizes.shared_width;
  if (!family.shared_count_key.empty()) c[family.shared_count_key] = sizes.shared_width / sizes.expert_width;
  if (family.layers == LayerPattern::kFirstDense) c["first_k_dense_replace"] = sizes.first_dense_layers;
  if (family.layers == LayerPattern::kByTypes) {
    c["mlp_layer_types"] = Json::array();
    for (int64_t layer = 0; layer < sizes.num_layers; ++layer)
      c["mlp_layer_types"].push_back(layer < sizes.first_dense_layers ? "dense" : "sparse");
  }
  if (family.layers == LayerPattern::kSparseStep) {
    c["decoder_sparse_step"] = 1;
    c["mlp_only_layers"] = Json::array();
    for (int64_t layer = 0; layer < sizes.first_dense_layers; ++layer) c["mlp_only_layers"].push_back(layer);
  }
  if (family.renormalise.kind == Switch::Kind::kKey) c[family.renormalise.key] = sizes.renormalise.value_or(true);
  if (family.has_groups) {
    c["n_group"] = 1;
    c["topk_group"] = 1;
  }
  if (!family.groups_on_key.empty()) c[family.groups_on_key] = "greedy";
  if (family.has_routed_scaling) c["routed_scaling_factor"] = 1.0;
  if (family.aux_loss_fallback > 0) c[family.aux_loss_key] = family.aux_loss_fallback;
}

// Every layer attends to all positions, except where the family's code always has local attention.
void add_windows(const ModelSizes& sizes, const Family& family, Json& c) {
  if (family.sliding_window == families::SlidingWindow::kNever) return;
  if (family.sliding_window_on.kind == Switch::Kind::kKey) {
    c[family.sliding_window_on.key] = false;
  } else if (family.sliding_window == families::SlidingWindow::kAlternating) {
    c["sliding_window"] = family.sliding_window_fallback;
    c["layer_types"] = Json::array();
    for (int64_t layer = 0; layer < sizes.num_layers; ++layer)
      c["layer_types"].push_back(layer % 2 == 0 ? "sliding_attention" : "full_attention");
  } else {
    c["sliding_window"] = Json();
  }
}

void add_latents(const ModelSizes& sizes, Json& c) {
  c["qk_rope_head_dim"] = sizes.head_dim / 2;
  c["qk_nope_head_dim"] = sizes.head_dim - sizes.head_dim / 2;
  c["v_head_dim"] = sizes.head_dim;
  c["q_lora_rank"] = 4 * sizes.head_dim;
  c["kv_lora_rank"] = 2 * sizes.head_dim;
}

void add_attention(const ModelSizes& sizes, const Family& family, Json& c) {
  c["num_attention_heads"] = sizes.num_heads;
  c["num_key_value_heads"] = sizes.num_kv_heads;
  if (family.has_latent_attention) {
    add_latents(sizes, c);
  } else {
    c["head_dim"] = sizes.head_dim;
  }
  for (const Switch* s : {&family.qkv_bias, &family.output_bias, &family.mlp_bias}) {
    if (s->kind == Switch::Kind::kKey) c[s->key] = s->fallback;
  }
  if (family.qk_norm_on.kind == Switch::Kind::kKey) c[family.qk_norm_on.key] = true;
  if (!family.clip_qkv_key.empty()) c[family.clip_qkv_key] = Json();
  add_windows(sizes, family, c);
  // At the top level, as in version 4; version 5 reads them there too.
  c["rope_theta"] = family.rope_theta_fallback;
  if (!family.default_rope.empty())
    c["rope_parameters"] = Json::object({{"rope_type", "default"}, {"rope_theta", family.rope_theta_fallback}});
  if (!family.multipliers.attention.empty())
    c[family.multipliers.attention] = 1.0 / std::sqrt(static_cast<double>(sizes.head_dim));
  if (family.has_partial_rotary) c["partial_rotary_factor"] = family.partial_rotary_fallback;
}

}  // namespace

Json make_config(const ModelSizes& sizes, io::Dtype dtype) {
  const Family& family = families::family_of(sizes.family);
  if (family.has_moe()) check_experts(sizes, family);
  check_attention(sizes, family);

  Json c = Json::object();
  c["architectures"] = Json::array({Json(family.architecture)});
  c["model_type"] = family.model_type;
  c["torch_dtype"] = dtype_key(dtype);  // version 5 reads the older name too
  c["vocab_size"] = sizes.vocab_size;
  c["hidden_size"] = sizes.model_dim;
  c["num_hidden_layers"] = sizes.num_layers;
  if (!family.dense_width_key.empty()) c[family.dense_width_key] = sizes.dense_width;
  add_attention(sizes, family, c);
  if (family.has_moe()) add_experts(sizes, family, c);
  c["hidden_act"] = family.hidden_act_fallback;
  c["max_position_embeddings"] = sizes.max_positions;
  c["rms_norm_eps"] = family.rms_eps_fallback;
  c["initializer_range"] = 0.02;
  c["attention_dropout"] = 0.0;
  c["tie_word_embeddings"] = sizes.tied;
  c["use_cache"] = true;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) c[key] = Json();

  try {
    (void)families::read_config(c, "sizes");
  } catch (const Error& error) {
    throw Error(ErrorCode::kUsage, cat("a new ", sizes.family, " model: ", error.what()));
  }
  return c;
}

}  // namespace coppice::models
