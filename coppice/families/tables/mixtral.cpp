#include "coppice/families/family.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts", "num_experts"};

// Shapes are [out, in], as on disk.
constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}},
    {"model.layers.{L}.self_attn.q_proj.weight", kQuery, {kQueryRows, kModel}},
    {"model.layers.{L}.self_attn.k_proj.weight", kKey, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.v_proj.weight", kValue, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kQueryRows}},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.block_sparse_moe.gate.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w1.weight", kExpertGate, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w3.weight", kExpertUp, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w2.weight", kExpertDown, {kModel, kExpertWidth}, kMoeLayer},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {{"block_sparse_moe.", "mlp."}};

}  // namespace

extern const Family kMixtral;  // listed once, in all.cpp
const Family kMixtral{
    .model_type = "mixtral",
    .architecture = "MixtralForCausalLM",
    .tensors = kTensors,
    .memory_names = kMemoryNames,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .dense_width_key = "",
    .layers = LayerPattern::kEveryLayer,
    .renormalise = Switch::yes(),
    .aux_loss_key = "router_aux_loss_coef",
    .aux_loss_fallback = 0.001,
    .sliding_window = SlidingWindow::kIfSet,
    .kv_heads_fallback = 8,
    .max_positions_fallback = 131072,
    .rope_theta_fallback = 1e6,
    .rms_eps_fallback = 1e-5,
};

}  // namespace coppice::families
