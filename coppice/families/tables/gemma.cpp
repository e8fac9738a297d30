#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

constexpr bool kCentred = true;

// Shapes are [out, in], as on disk.
constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}, kAlways, {}, kCentred},
    {"model.layers.{L}.self_attn.q_proj.weight", kQuery, {kQueryRows, kModel}},
    {"model.layers.{L}.self_attn.q_proj.bias", kQueryBias, {kQueryRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.k_proj.weight", kKey, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.k_proj.bias", kKeyBias, {kKeyValueRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.v_proj.weight", kValue, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.v_proj.bias", kValueBias, {kKeyValueRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kQueryRows}},
    {"model.layers.{L}.self_attn.o_proj.bias", kAttentionOutputBias, {kModel}, kIfOutputBias},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}, kAlways, {}, kCentred},
    {"model.layers.{L}.mlp.gate_proj.weight", kDenseGate, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.up_proj.weight", kDenseUp, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.down_proj.weight", kDenseDown, {kModel, kDenseWidth}, kDenseLayer},
    {"model.norm.weight", kFinalNorm, {kModel}, kAlways, {}, kCentred},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kGemma;  // listed once, in all.cpp
const Family kGemma{
    .model_type = "gemma",
    .architecture = "GemmaForCausalLM",
    .tensors = kTensors,
    .qkv_bias = Switch::read("attention_bias", false),
    .output_bias = Switch::read("attention_bias", false),
    .hidden_act_fallback = "gelu_pytorch_tanh",
    .tied_fallback = true,
    .multipliers = {.sqrt_embedding = true},
    .kv_heads_fallback = 16,
    .head_dim_fallback = 256,
    .max_positions_fallback = 8192,
};

}  // namespace coppice::families
