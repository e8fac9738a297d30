#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts"};

// Attention is also a mixture with the same number of experts; those are always copied. `bias` is one for all experts.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.router.layer.weight", kRouter},
    {"model.layers.{L}.mlp.input_linear.weight", kExpertGateUp, {}, kAlways, kStacked},
    {"model.layers.{L}.mlp.output_linear.weight", kExpertDown, {}, kAlways, kStacked},
    {"model.layers.{L}.mlp.bias", kOther},
    {"model.layers.{L}.self_attention.experts.router.layer.weight", kAttentionRouter},
    {"model.layers.{L}.self_attention.experts.input_linear.weight", kAttentionExpert, {}, kAlways, kStacked},
    {"model.layers.{L}.self_attention.experts.output_linear.weight", kAttentionExpert, {}, kAlways, kStacked},
    {"model.layers.{L}.self_attention.experts.bias", kAttention},
    {"model.layers.{L}.self_attention.kv_proj.*", kAttention},
};

}  // namespace

extern const Family kJetmoe;
const Family kJetmoe{
    .model_type = "jetmoe",
    .architecture = "JetMoeForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kTopKSoftmax,
};

}  // namespace coppice::families
