#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

// Shapes are [out, in], as on disk.
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
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kMistral;  // listed once, in all.cpp
const Family kMistral{
    .model_type = "mistral",
    .architecture = "MistralForCausalLM",
    .tensors = kTensors,
    .sliding_window = SlidingWindow::kIfSet,
    .sliding_window_fallback = 4096,
    .kv_heads_fallback = 8,
    .max_positions_fallback = 131072,
};

}  // namespace coppice::families
