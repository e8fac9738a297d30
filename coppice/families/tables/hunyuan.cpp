#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.wg.weight", kRouter},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_mlp.*.*", kShared},
};
// The third version: sigmoid and a selection bias.
constexpr TensorRule kTensorsOfThird[] = {
    {"model.layers.{L}.mlp.router.gate.weight", kRouter},
    {"model.layers.{L}.mlp.expert_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_mlp.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"mlp.router.gate.", "mlp.gate."},
    {"mlp.expert_bias", "mlp.e_score_correction_bias"},
    {"mlp.shared_mlp.", "mlp.shared_experts."},
};

}  // namespace

extern const Family kHunyuanV1Moe, kHyV3;
const Family kHunyuanV1Moe{
    .model_type = "hunyuan_v1_moe",
    .architecture = "HunYuanMoEV1ForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .experts_keys = kExpertsKeys,
    .top_k_key = "moe_topk",
    .counts_by_layer = true,
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::yes(),
};
const Family kHyV3{
    .model_type = "hy_v3",
    .architecture = "HYV3ForCausalLM",
    .tensors = kTensorsOfThird,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .memory_names = kMemoryNames,
    .left_out = R"({"rope_theta": 11158840})",
    .has_mtp = true,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .shared_count_key = "num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::yes(),
    .has_routed_scaling = true,
    .routed_scaling_key = "router_scaling_factor",
};

}  // namespace coppice::families
