#include "coppice/families/tables/table_detail.h"
#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum Dim;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts"};

// Experts are [experts, out, in], gate the first half of the rows.
constexpr TensorRule kTensorsWithShared[] = {
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
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.block_sparse_moe.router.layer.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.block_sparse_moe.input_linear.weight",
     kExpertGateUp,
     {kExperts, kExpertGateUpRows, kModel},
     kMoeLayer,
     kStacked},
    {"model.layers.{L}.block_sparse_moe.output_linear.weight",
     kExpertDown,
     {kExperts, kModel, kExpertWidth},
     kMoeLayer,
     kStacked},
    {"model.layers.{L}.shared_mlp.input_linear.weight", kSharedGateUp, {kSharedGateUpRows, kModel}, kMoeLayerIfShared},
    {"model.layers.{L}.shared_mlp.output_linear.weight", kSharedDown, {kModel, kSharedWidth}, kMoeLayerIfShared},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

constexpr auto kTensors = detail::without<kSharedGateUp, kSharedDown>(kTensorsWithShared);

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"},
    {"block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"},
    {"block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"},
};

constexpr Family granite(std::string_view model_type, std::string_view architecture,
                         std::span<const TensorRule> tensors, std::string_view shared_width_key) {
  return {
      .model_type = model_type,
      .architecture = architecture,
      .tensors = tensors,
      .trunk = detail::kDecoderTrunk,
      .memory_names = kMemoryNames,
      .experts_keys = kExpertsKeys,
      .top_k_key = "num_experts_per_tok",
      .expert_width_key = "intermediate_size",
      .shared_width_key = shared_width_key,
      .dense_width_key = "",
      .layers = LayerPattern::kEveryLayer,
      .gate = GateFunction::kTopKSoftmax,
      .aux_loss_key = "router_aux_loss_coef",
      .aux_loss_fallback = 0.001,
      .qkv_bias = Switch::read("attention_bias", false),
      .output_bias = Switch::read("attention_bias", false),
      .multipliers = {.embedding = "embedding_multiplier",
                      .attention = "attention_multiplier",
                      .residual = "residual_multiplier",
                      .logits = "logits_scaling"},
      .max_positions_fallback = 2048,
  };
}

}  // namespace

extern const Family kGraniteMoe, kGraniteMoeShared;  // listed once, in all.cpp
const Family kGraniteMoe = granite("granitemoe", "GraniteMoeForCausalLM", kTensors, "");
const Family kGraniteMoeShared =
    granite("granitemoeshared", "GraniteMoeSharedForCausalLM", kTensorsWithShared, "shared_intermediate_size");

}  // namespace coppice::families
