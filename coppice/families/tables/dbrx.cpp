#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"ffn_config.moe_num_experts"};

// [experts * width, model]: each expert's rows of gate and up, and of down its transpose.
constexpr TensorRule kTensors[] = {
    {"transformer.blocks.{L}.ffn.router.layer.weight", kRouter},
    {"transformer.blocks.{L}.ffn.experts.mlp.w1", kExpertGate, {}, kAlways, kStacked},
    {"transformer.blocks.{L}.ffn.experts.mlp.v1", kExpertUp, {}, kAlways, kStacked},
    {"transformer.blocks.{L}.ffn.experts.mlp.w2", kExpertDown, {}, kAlways, kStackedInOut},
};
constexpr TensorRule kTrunk[] = {
    {"transformer.wte.weight", kEmbeddings},
    {"lm_head.weight", kEmbeddings},
    {"transformer.norm_f.*", kNorm},
    {"transformer.blocks.{L}.norm_attn_norm.*.*", kNorm},
    {"transformer.blocks.{L}.norm_attn_norm.attn.**", kAttention},
};

}  // namespace

extern const Family kDbrx;
const Family kDbrx{
    .model_type = "dbrx",
    .architecture = "DbrxForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = kTrunk,
    .layers_key = "n_layers",
    .model_dim_key = "d_model",
    .experts_keys = kExpertsKeys,
    .top_k_key = "ffn_config.moe_top_k",
    .expert_width_key = "ffn_config.ffn_hidden_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::yes(),
    .gate_norm_key = "ffn_config.moe_normalize_expert_weights",
};

}  // namespace coppice::families
