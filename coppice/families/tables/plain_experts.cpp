#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

// Families that differ only in attention: softmax (cohere2_moe: either order), a linear router, plain experts.

constexpr std::string_view kExpertsKeys[] = {"num_experts"};
constexpr std::string_view kLocalExpertsKeys[] = {"num_local_experts", "num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};
constexpr TensorRule kTensorsWithShared[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_experts.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

}  // namespace

extern const Family kFlexOlmo, kMellum, kCohere2Moe;
const Family kFlexOlmo{
    .model_type = "flex_olmo",
    .architecture = "FlexOlmoForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"rope_theta": 500000})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::read("norm_topk_prob", false),
};
const Family kMellum{
    .model_type = "mellum",
    .architecture = "MellumForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"sliding_window": 1024, "rope_parameters": {
        "full_attention": {"rope_theta": 500000}, "sliding_attention": {"rope_theta": 10000}}})",
    .experts_keys = kLocalExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::read("norm_topk_prob", false),
};
const Family kCohere2Moe{
    .model_type = "cohere2_moe",
    .architecture = "Cohere2MoeForCausalLM",
    .tensors = kTensorsWithShared,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"sliding_window": 4096})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .shared_count_key = "num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kTopKSoftmax,
    .renormalise = Switch::read("norm_topk_prob", true),
    .sigmoid_key = "expert_selection_fn",
};

}  // namespace coppice::families
