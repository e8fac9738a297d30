#include "coppice/families/tables/table_detail.h"
#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

// Families with latent attention.

constexpr std::string_view kExpertsKeys[] = {"n_routed_experts", "num_local_experts"};

// Shapes are [out, in], as on disk. The multi-token-prediction layers of released files (past num_hidden_layers) have
// the rows of a layer with experts and some of the trunk's.
constexpr TensorRule kTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}},
    {"model.layers.{L}.self_attn.q_proj.weight", kQuery, {kQueryRows, kModel}, kIfNoQueryLatent},
    {"model.layers.{L}.self_attn.q_a_proj.weight", kQueryDown, {kQueryLatent, kModel}, kIfQueryLatent},
    {"model.layers.{L}.self_attn.q_a_proj.bias", kQueryDownBias, {kQueryLatent}, kIfQueryLatentAndBias},
    {"model.layers.{L}.self_attn.q_a_layernorm.weight", kQueryLatentNorm, {kQueryLatent}, kIfQueryLatent},
    {"model.layers.{L}.self_attn.q_b_proj.weight", kQueryUp, {kQueryRows, kQueryLatent}, kIfQueryLatent},
    {"model.layers.{L}.self_attn.kv_a_proj_with_mqa.weight", kKeyValueDown, {kKeyValueLatentRows, kModel}},
    {"model.layers.{L}.self_attn.kv_a_proj_with_mqa.bias", kKeyValueDownBias, {kKeyValueLatentRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.kv_a_layernorm.weight", kKeyValueLatentNorm, {kKeyValueLatent}},
    {"model.layers.{L}.self_attn.kv_b_proj.weight", kKeyValueUp, {kKeyValueUpRows, kKeyValueLatent}},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kValueRows}},
    {"model.layers.{L}.self_attn.o_proj.bias", kAttentionOutputBias, {kModel}, kIfOutputBias},
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

// Version 2 chooses by softmax alone.
constexpr auto kTensorsWithoutBias = detail::without<kSelectionBias>(kTensors);

// Keys that all of them share.
constexpr Family latent_family(std::string_view model_type, std::string_view architecture) {
  return {
      .model_type = model_type,
      .architecture = architecture,
      .tensors = kTensors,
      .trunk = detail::kDecoderTrunk,
      .has_mtp = true,
      .experts_keys = kExpertsKeys,
      .top_k_key = "num_experts_per_tok",
      .expert_width_key = "moe_intermediate_size",
      .shared_count_key = "n_shared_experts",
      .layers = LayerPattern::kFirstDense,
      .has_groups = true,
      .has_routed_scaling = true,
      .aux_loss_key = "aux_loss_alpha",  // in published files; transformers has no balancing loss here
      .qkv_bias = Switch::read("attention_bias", false),
      .output_bias = Switch::read("attention_bias", false),
      .has_latent_attention = true,
  };
}

constexpr Family deepseek_v2() {
  Family family = latent_family("deepseek_v2", "DeepseekV2ForCausalLM");
  family.tensors = kTensorsWithoutBias;
  family.has_mtp = false;
  family.group_score = GroupScore::kBest;
  family.groups_on_key = "topk_method";
  family.groups_on_value = "group_limited_greedy";
  family.rope_interleaved = Switch::yes();
  family.max_positions_fallback = 2048;
  return family;
}

constexpr Family deepseek_v3() {
  Family family = latent_family("deepseek_v3", "DeepseekV3ForCausalLM");
  family.first_dense_fallback = 3;
  family.gate = GateFunction::kSigmoidTopK;
  family.renormalise = Switch::read("norm_topk_prob", true);
  family.renormalise_epsilon = 1e-20;
  family.num_groups_fallback = 8;
  family.top_groups_fallback = 4;
  family.routed_scaling_fallback = 2.5;
  family.rope_interleaved = Switch::read("rope_interleave", true);
  family.max_positions_fallback = 4096;
  return family;
}

constexpr Family glm4_moe_lite() {
  Family family = deepseek_v3();
  family.model_type = "glm4_moe_lite";
  family.architecture = "Glm4MoeLiteForCausalLM";
  family.layers = LayerPattern::kByTypes;
  family.first_dense_fallback = 1;
  family.num_groups_fallback = family.top_groups_fallback = 1;
  family.routed_scaling_fallback = 1.8;
  family.has_partial_rotary = true;
  family.max_positions_fallback = 202752;
  family.rms_eps_fallback = 1e-5;
  return family;
}

}  // namespace

extern const Family kDeepseekV2, kDeepseekV3, kGlm4MoeLite;  // listed once, in all.cpp
const Family kDeepseekV2 = deepseek_v2();
const Family kDeepseekV3 = deepseek_v3();
const Family kGlm4MoeLite = glm4_moe_lite();

}  // namespace coppice::families
