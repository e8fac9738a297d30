#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.router.gate.weight", kRouter},
    {"model.layers.{L}.mlp.expert_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_experts.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

}  // namespace

extern const Family kAfmoe;
const Family kAfmoe{
    .model_type = "afmoe",
    .architecture = "AfmoeForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"sliding_window": 1024})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .shared_count_key = "num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::yes(),
    .has_routed_scaling = true,
    .routed_scaling_key = "route_scale",
};

}  // namespace coppice::families
