#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts", "num_experts"};

// The experts of each layer in two tensors, [experts, in, out]; transformers before version 5 saved them in the same
// way.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.experts.gate_up_proj", kExpertGateUp, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.mlp.experts.down_proj", kExpertDown, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

}  // namespace

extern const Family kQwen3VlMoeText;
const Family kQwen3VlMoeText{
    .model_type = "qwen3_vl_moe_text",
    .architecture = "Qwen3VLMoeForConditionalGeneration",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"rope_theta": 500000})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::yes(),
};

}  // namespace coppice::families
