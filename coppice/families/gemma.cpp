#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

// Shapes are [out, in], as on disk. Norms multiply by 1 + weight, embeddings are multiplied by sqrt(hidden_size).
constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}},
    {"model.layers.{L}.self_attn.q_proj.weight", kQuery, {kQueryRows, kModel}},
    {"model.layers.{L}.self_attn.k_proj.weight", kKey, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.v_proj.weight", kValue, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kQueryRows}},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.mlp.gate_proj.weight", kDenseGate, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.up_proj.weight", kDenseUp, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.down_proj.weight", kDenseDown, {kModel, kDenseWidth}, kDenseLayer},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kOptional},
};

}  // namespace

extern const Family kGemma;  // listed once, in all.cpp
const Family kGemma{
    .model_type = "gemma",
    .architecture = "GemmaForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .kv_heads_fallback = 16,
    .head_dim_fallback = 256,
    .max_positions_fallback = 8192,
};

}  // namespace coppice::families
