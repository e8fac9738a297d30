#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

// Shapes are [out, in], as on disk: query, key and value rows lie in one tensor, gate and up rows in another.
constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}},
    {"model.layers.{L}.self_attn.qkv_proj.weight", kQueryKeyValue, {kQueryKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kQueryRows}},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.mlp.gate_up_proj.weight", kDenseGateUp, {kDenseGateUpRows, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.down_proj.weight", kDenseDown, {kModel, kDenseWidth}, kDenseLayer},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kPhi3;  // listed once, in all.cpp
const Family kPhi3{
    .model_type = "phi3",
    .architecture = "Phi3ForCausalLM",
    .tensors = kTensors,
    .has_partial_rotary = true,
    .renamed_rope = true,
    .original_positions_fallback = 4096,
    .sliding_window = SlidingWindow::kIfSet,
    .max_positions_fallback = 4096,
    .rms_eps_fallback = 1e-5,
};

}  // namespace coppice::families
