#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.feed_forward.gate.weight", kRouter},
    {"model.layers.{L}.feed_forward.expert_bias", kSelectionBias, {}, kOptional},  // use_expert_bias
    {"model.layers.{L}.feed_forward.experts.{X}.w1.weight", kExpertGate},
    {"model.layers.{L}.feed_forward.experts.{X}.w3.weight", kExpertUp},
    {"model.layers.{L}.feed_forward.experts.{X}.w2.weight", kExpertDown},
    {"model.layers.{L}.feed_forward.w1.*", kDense},
    {"model.layers.{L}.feed_forward.w2.*", kDense},
    {"model.layers.{L}.feed_forward.w3.*", kDense},
};

}  // namespace

extern const Family kLfm2Moe;
const Family kLfm2Moe{
    .model_type = "lfm2_moe",
    .architecture = "Lfm2MoeForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"rope_theta": 1000000})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::read("norm_topk_prob", true),
    .selection_bias_on = Switch::read("use_expert_bias", true),
    .has_routed_scaling = true,
};

}  // namespace coppice::families
