#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_experts.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
    {"mtp.layers.{M}.mlp.gate.weight", kRouter},
    {"mtp.layers.{M}.mlp.e_score_correction_bias", kSelectionBias},
    {"mtp.layers.{M}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"mtp.layers.{M}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"mtp.layers.{M}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"mtp.layers.{M}.mlp.shared_experts.*.*", kShared},
    {"mtp.layers.{M}.mlp.gate_proj.*", kDense},
    {"mtp.layers.{M}.mlp.up_proj.*", kDense},
    {"mtp.layers.{M}.mlp.down_proj.*", kDense},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"mlp.e_score_", "mlp.gate.e_score_"},
};

}  // namespace

extern const Family kExaoneMoe;
const Family kExaoneMoe{
    .model_type = "exaone_moe",
    .architecture = "ExaoneMoeForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .memory_names = kMemoryNames,
    .left_out = R"({"sliding_window": 4096})",
    .has_mtp = true,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .shared_count_key = "num_shared_experts",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::read("norm_topk_prob", true),
    .has_groups = true,
    .has_routed_scaling = true,
};

}  // namespace coppice::families
