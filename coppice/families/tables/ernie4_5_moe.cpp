#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"moe_num_experts"};

// The selection bias is [1, experts]; it is added to softmax probabilities.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.moe_statics.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.bias", kExpertGateBias, {}, kOptional},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.bias", kExpertUpBias, {}, kOptional},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.bias", kExpertDownBias, {}, kOptional},
    {"model.layers.{L}.mlp.shared_experts.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
    {"model.mtp_block.{N}.*norm*.**", kNorm},
    {"model.mtp_block.{N}.self_attn.**", kOther},
    {"model.mtp_block.{N}.mlp.gate_proj.*", kOther},
    {"model.mtp_block.{N}.mlp.up_proj.*", kOther},
    {"model.mtp_block.{N}.mlp.down_proj.*", kOther},
    {"model.mtp_linear_proj.**", kOther},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"mlp.moe_statics.", "mlp.gate.moe_statics."},
};

}  // namespace

extern const Family kErnie45Moe;
const Family kErnie45Moe{
    .model_type = "ernie4_5_moe",
    .architecture = "Ernie4_5_MoeForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .memory_names = kMemoryNames,
    .left_out = R"({"rope_theta": 500000})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "moe_k",
    .expert_width_key = "moe_intermediate_size",
    .shared_count_key = "moe_num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::yes(),
};

}  // namespace coppice::families
