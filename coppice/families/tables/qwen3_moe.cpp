#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

// Released files say num_experts; transformers 5 writes num_local_experts and reads both.
constexpr std::string_view kExpertsKeys[] = {"num_experts", "num_local_experts"};

// Shapes are [out, in], as on disk.
constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}},
    {"model.layers.{L}.self_attn.q_proj.weight", kQuery, {kQueryRows, kModel}},
    {"model.layers.{L}.self_attn.q_proj.bias", kQueryBias, {kQueryRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.k_proj.weight", kKey, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.k_proj.bias", kKeyBias, {kKeyValueRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.v_proj.weight", kValue, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.v_proj.bias", kValueBias, {kKeyValueRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kQueryRows}},
    {"model.layers.{L}.self_attn.o_proj.bias", kAttentionOutputBias, {kModel}, kIfOutputBias},
    {"model.layers.{L}.self_attn.q_norm.weight", kQueryNorm, {kHeadDim}, kIfQkNorm},
    {"model.layers.{L}.self_attn.k_norm.weight", kKeyNorm, {kHeadDim}, kIfQkNorm},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.mlp.gate_proj.weight", kDenseGate, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.up_proj.weight", kDenseUp, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.down_proj.weight", kDenseDown, {kModel, kDenseWidth}, kDenseLayer},
    {"model.layers.{L}.mlp.gate.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown, {kModel, kExpertWidth}, kMoeLayer},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kQwen3Moe;  // listed once, in all.cpp
const Family kQwen3Moe{
    .model_type = "qwen3_moe",
    .architecture = "Qwen3MoeForCausalLM",
    .tensors = kTensors,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .layers = LayerPattern::kSparseStep,
    .renormalise = Switch::read("norm_topk_prob", false),
    .aux_loss_key = "router_aux_loss_coef",
    .aux_loss_fallback = 0.001,
    .qkv_bias = Switch::read("attention_bias", false),
    .output_bias = Switch::read("attention_bias", false),
    .qk_norm = QkNorm::kPerHead,
    .sliding_window = SlidingWindow::kIfSet,
    .sliding_window_on = Switch::read("use_sliding_window", false),
    .sliding_window_fallback = 4096,
    .kv_heads_fallback = 4,
    .max_positions_fallback = 32768,
};

}  // namespace coppice::families
