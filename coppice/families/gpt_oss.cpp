#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts", "num_experts"};

// [experts, in, out], gate in the even and up in the odd columns. Released files hold mxfp4 in place of the weights:
// gate_up_proj_blocks and _scales, down_proj_blocks and _scales.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.router.weight", kRouter},
    {"model.layers.{L}.mlp.router.bias", kRouterBias},
    {"model.layers.{L}.mlp.experts.gate_up_proj", kExpertGateUp, {}, kAlways, kStackedInOutInterleaved},
    {"model.layers.{L}.mlp.experts.gate_up_proj_bias", kExpertGateUpBias, {}, kAlways, kStackedInterleaved},
    {"model.layers.{L}.mlp.experts.down_proj", kExpertDown, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.mlp.experts.down_proj_bias", kExpertDownBias, {}, kAlways, kStacked},
};

}  // namespace

extern const Family kGptOss;
const Family kGptOss{
    .model_type = "gpt_oss",
    .architecture = "GptOssForCausalLM",
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
