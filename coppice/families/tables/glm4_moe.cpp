#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"n_routed_experts", "num_local_experts"};

// Shapes are [out, in], as on disk. The multi-token-prediction layers of released files (past num_hidden_layers) have
// the rows of a layer with experts and some of the trunk's.
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
    {"model.layers.{L}.self_attn.q_norm.weight", kQueryNorm, {kHeadDim}, kIfQkNorm},
    {"model.layers.{L}.self_attn.k_norm.weight", kKeyNorm, {kHeadDim}, kIfQkNorm},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.mlp.gate_proj.weight", kDenseGate, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.up_proj.weight", kDenseUp, {kDenseWidth, kModel}, kDenseLayer},
    {"model.layers.{L}.mlp.down_proj.weight", kDenseDown, {kModel, kDenseWidth}, kDenseLayer},
    {"model.layers.{L}.mlp.gate.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.gate.e_score_correction_bias", kSelectionBias, {kExperts}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp, {kExpertWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown, {kModel, kExpertWidth}, kMoeLayer},
    {"model.layers.{L}.mlp.shared_experts.gate_proj.weight", kSharedGate, {kSharedWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.shared_experts.up_proj.weight", kSharedUp, {kSharedWidth, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.shared_experts.down_proj.weight", kSharedDown, {kModel, kSharedWidth}, kMoeLayer},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kGlm4Moe;  // listed once, in all.cpp
const Family kGlm4Moe{
    .model_type = "glm4_moe",
    .architecture = "Glm4MoeForCausalLM",
    .tensors = kTensors,
    .trunk = detail::kDecoderTrunk,
    .has_mtp = true,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .shared_count_key = "n_shared_experts",
    .layers = LayerPattern::kFirstDense,
    .first_dense_fallback = 1,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::read("norm_topk_prob", true),
    .has_groups = true,
    .has_routed_scaling = true,
    .renormalise_epsilon = 1e-20,
    .qkv_bias = Switch::read("attention_bias", false),
    .qk_norm = QkNorm::kPerHead,
    .qk_norm_on = Switch::read("use_qk_norm", false),
    .has_partial_rotary = true,
    .partial_rotary_fallback = 0.5,
    .kv_heads_fallback = 8,
    .max_positions_fallback = 131072,
    .rms_eps_fallback = 1e-5,
};

}  // namespace coppice::families
