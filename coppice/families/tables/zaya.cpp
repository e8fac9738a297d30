#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

// The router is a small network; the last of its rows, and of the biases, is the choice to skip.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.router_mlp.out_proj.weight", kRouter},
    {"model.layers.{L}.mlp.gate.balancing_biases", kSelectionBias},
    {"model.layers.{L}.mlp.gate.router_states_scale", kRouterTrunk},
    {"model.layers.{L}.mlp.gate.down_proj.*", kRouterTrunk},
    {"model.layers.{L}.mlp.gate.router_mlp.fc1.*", kRouterTrunk},
    {"model.layers.{L}.mlp.gate.router_mlp.fc2.*", kRouterTrunk},
    {"model.layers.{L}.mlp.gate.router_mlp.norm.*", kRouterTrunk},
    {"model.layers.{L}.mlp.experts.gate_up_proj", kExpertGateUp, {}, kAlways, kStacked},
    {"model.layers.{L}.mlp.experts.down_proj", kExpertDown, {}, kAlways, kStacked},
    {"model.input_hidden_states_*", kOther},
    {"model.layers.{L}.*_residual_scale.*", kOther},
};

}  // namespace

extern const Family kZaya;
const Family kZaya{
    .model_type = "zaya",
    .architecture = "ZayaForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"rope_parameters": {
        "hybrid": {"rope_theta": 5000000, "partial_rotary_factor": 0.5},
        "hybrid_sliding": {"rope_theta": 10000, "partial_rotary_factor": 0.5}}})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .fixed_top_k = 1,
    .trailing_choices = 1,
    .expert_width_key = "moe_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .router = RouterKind::kTrailingChoices,
};

}  // namespace coppice::families
