#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

// A dense feed-forward runs beside the experts. [experts, out, in], gate the first half of the rows.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.router.proj.weight", kRouter},
    {"model.layers.{L}.router.per_expert_scale", kExpertScale},
    {"model.layers.{L}.router.scale", kRouterTrunk},
    {"model.layers.{L}.experts.gate_up_proj", kExpertGateUp, {}, kAlways, kStacked},
    {"model.layers.{L}.experts.down_proj", kExpertDown, {}, kAlways, kStacked},
    {"model.layers.{L}.mlp.*.*", kDense},
    {"model.layers.{L}.layer_scalar", kOther},
    {"model.layers.{L}.per_layer_*.*", kOther},
    {"model.embed_tokens_per_layer.*", kEmbeddings},
    {"model.per_layer_*.*", kOther},
};

}  // namespace

extern const Family kGemma4Text;
const Family kGemma4Text{
    .model_type = "gemma4_text",
    .architecture = "Gemma4ForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"sliding_window": 512, "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000},
        "sliding_attention": {"rope_theta": 10000}}})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "top_k_experts",
    .expert_width_key = "moe_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::yes(),
};

}  // namespace coppice::families
