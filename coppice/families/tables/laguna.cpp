#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

// The selection bias is stored below the module of the experts.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.experts.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_expert.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"mlp.experts.e_score_", "mlp.gate.e_score_"},
    {"mlp.shared_expert.", "mlp.shared_experts."},
};

}  // namespace

extern const Family kLaguna;
const Family kLaguna{
    .model_type = "laguna",
    .architecture = "LagunaForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .memory_names = kMemoryNames,
    .left_out = R"({"sliding_window": 512, "rope_parameters": {
        "full_attention": {"rope_theta": 500000, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_theta": 10000}}})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "shared_expert_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::yes(),
    .has_routed_scaling = true,
    .routed_scaling_key = "moe_routed_scaling_factor",
};

}  // namespace coppice::families
