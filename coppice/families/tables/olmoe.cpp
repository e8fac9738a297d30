#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

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
    {"model.layers.{L}.self_attn.q_norm.weight", kQueryNorm, {kQueryRows}, kIfQkNorm},
    {"model.layers.{L}.self_attn.k_norm.weight", kKeyNorm, {kKeyValueRows}, kIfQkNorm},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.mlp.gate.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown, {kModel, kExpertWidth}, kMoeLayer},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kOlmoe;  // listed once, in all.cpp
const Family kOlmoe{
    .model_type = "olmoe",
    .architecture = "OlmoeForCausalLM",
    .tensors = kTensors,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .dense_width_key = "",
    .layers = LayerPattern::kEveryLayer,
    .renormalise = Switch::read("norm_topk_prob", false),
    .aux_loss_key = "router_aux_loss_coef",
    .aux_loss_fallback = 0.01,
    .qkv_bias = Switch::read("attention_bias", false),
    .output_bias = Switch::read("attention_bias", false),
    .qk_norm = QkNorm::kWhole,
    .fixed_head_dim = true,
    .clip_qkv_key = "clip_qkv",
    .max_positions_fallback = 4096,
    .rms_eps_fallback = 1e-5,
};

}  // namespace coppice::families
