#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"moe_num_experts"};

// [experts, in, out], gate the first half of the columns of fc1.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.router.weight", kRouter},
    {"model.layers.{L}.mlp.experts.fc1.weight", kExpertGateUp, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.mlp.experts.fc2.weight", kExpertDown, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.mlp.shared_experts.*.*", kShared},
};

}  // namespace

extern const Family kAriaText;
const Family kAriaText{
    .model_type = "aria_text",
    .architecture = "AriaTextForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .experts_keys = kExpertsKeys,
    .top_k_key = "moe_topk",
    .expert_width_key = "intermediate_size",
    .shared_count_key = "moe_num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kTopKSoftmax,
};

}  // namespace coppice::families
