#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.block_sparse_moe.gate.weight", kRouter},
    {"model.layers.{L}.block_sparse_moe.gate.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w1.weight", kExpertGate},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w3.weight", kExpertUp},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w2.weight", kExpertDown},
    {"model.layers.{L}.block_sparse_moe.shared_experts.*.*", kShared},
    {"model.layers.{L}.block_sparse_moe.gate_proj.*", kDense},
    {"model.layers.{L}.block_sparse_moe.up_proj.*", kDense},
    {"model.layers.{L}.block_sparse_moe.down_proj.*", kDense},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"block_sparse_moe.", "mlp."},
};

}  // namespace

extern const Family kKimiLinear;
const Family kKimiLinear{
    .model_type = "kimi_linear",
    .architecture = "KimiLinearForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .memory_names = kMemoryNames,
    .has_mtp = true,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_token",
    .expert_width_key = "moe_intermediate_size",
    .shared_count_key = "num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::read("moe_renormalize", true),
    .has_groups = true,
    .num_groups_key = "num_expert_group",
    .has_routed_scaling = true,
};

}  // namespace coppice::families
