#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    // Released qwen3_5_moe stacks them.
    {"model.layers.{L}.mlp.experts.gate_up_proj", kExpertGateUp, {}, kOptional, kStacked},
    {"model.layers.{L}.mlp.experts.down_proj", kExpertDown, {}, kOptional, kStacked},
    {"model.layers.{L}.mlp.shared_expert.*.*", kShared},
    {"model.layers.{L}.mlp.shared_expert_gate.weight", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
    {"mtp.layers.{M}.mlp.gate.weight", kRouter},
    {"mtp.layers.{M}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"mtp.layers.{M}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"mtp.layers.{M}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"mtp.layers.{M}.mlp.experts.gate_up_proj", kExpertGateUp, {}, kOptional, kStacked},
    {"mtp.layers.{M}.mlp.experts.down_proj", kExpertDown, {}, kOptional, kStacked},
    {"mtp.layers.{M}.mlp.shared_expert.*.*", kShared},
    {"mtp.layers.{M}.mlp.shared_expert_gate.weight", kShared},
    {"mtp.layers.{M}.mlp.gate_proj.*", kDense},
    {"mtp.layers.{M}.mlp.up_proj.*", kDense},
    {"mtp.layers.{M}.mlp.down_proj.*", kDense},
};

constexpr Family like_qwen3_next(std::string_view model_type, std::string_view architecture, Switch renormalise) {
  return {
      .model_type = model_type,
      .architecture = architecture,
      .tensors = kTensors,
      .surgery_only = true,
      .trunk = detail::kDecoderTrunk,
      .left_out = R"({"partial_rotary_factor": 0.25})",
      .has_mtp = true,
      .experts_keys = kExpertsKeys,
      .top_k_key = "num_experts_per_tok",
      .expert_width_key = "moe_intermediate_size",
      .shared_width_key = "shared_expert_intermediate_size",
      .layers = LayerPattern::kByWeights,
      .renormalise = renormalise,
  };
}

}  // namespace

extern const Family kQwen3Next, kQwen35MoeText;
const Family kQwen3Next = like_qwen3_next("qwen3_next", "Qwen3NextForCausalLM", Switch::read("norm_topk_prob", true));
const Family kQwen35MoeText = like_qwen3_next("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", Switch::yes());

}  // namespace coppice::families
