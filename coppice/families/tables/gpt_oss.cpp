#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts", "num_experts"};

// Experts are [experts, in, out], gate in the even and up in the odd columns. Released files hold mxfp4 in place of
// their weights: gate_up_proj_blocks and _scales, down_proj_blocks and _scales.
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
    {"model.layers.{L}.self_attn.sinks", kSinks, {kHeads}},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.mlp.router.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.mlp.router.bias", kRouterBias, {kExperts}, kMoeLayer},
    {"model.layers.{L}.mlp.experts.gate_up_proj",
     kExpertGateUp,
     {kExperts, kModel, kExpertGateUpRows},
     kMoeLayer,
     kStackedInOutInterleaved},
    {"model.layers.{L}.mlp.experts.gate_up_proj_bias",
     kExpertGateUpBias,
     {kExperts, kExpertGateUpRows},
     kMoeLayer,
     kStackedInterleaved},
    {"model.layers.{L}.mlp.experts.down_proj", kExpertDown, {kExperts, kExpertWidth, kModel}, kMoeLayer, kStackedInOut},
    {"model.layers.{L}.mlp.experts.down_proj_bias", kExpertDownBias, {kExperts, kModel}, kMoeLayer, kStacked},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

}  // namespace

extern const Family kGptOss;  // listed once, in all.cpp
const Family kGptOss{
    .model_type = "gpt_oss",
    .architecture = "GptOssForCausalLM",
    .tensors = kTensors,
    .trunk = detail::kDecoderTrunk,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .dense_width_key = "",
    .layers = LayerPattern::kEveryLayer,
    .gate = GateFunction::kTopKSoftmax,
    .aux_loss_key = "router_aux_loss_coef",
    .aux_loss_fallback = 0.001,
    .qkv_bias = Switch::read("attention_bias", true),
    .output_bias = Switch::read("attention_bias", true),
    .default_rope = R"({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                        "original_max_position_embeddings": 4096})",
    .activation = Activation::kClampedSilu,
    .sliding_window = SlidingWindow::kAlternating,
    .sliding_window_fallback = 128,
    .kv_heads_fallback = 8,
    .head_dim_fallback = 64,
    .max_positions_fallback = 131072,
    .rope_theta_fallback = 150000.0,
    .rms_eps_fallback = 1e-5,
};

}  // namespace coppice::families
