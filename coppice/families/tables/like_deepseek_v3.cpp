#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

// Families that route as deepseek_v3 does and differ in attention.

constexpr std::string_view kExpertsKeys[] = {"n_routed_experts", "num_local_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.gate.weight", kRouter},
    {"model.layers.{L}.mlp.gate.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlp.shared_experts.*.*", kShared},
    {"model.layers.{L}.mlp.gate_proj.*", kDense},
    {"model.layers.{L}.mlp.up_proj.*", kDense},
    {"model.layers.{L}.mlp.down_proj.*", kDense},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNamesOfMimo[] = {{"self_attn.attention_sink_bias", "self_attn.sinks"}};

constexpr Family like_version_3(std::string_view model_type, std::string_view architecture,
                                std::string_view left_out = {}, std::span<const Rename> memory_names = {}) {
  return {
      .model_type = model_type,
      .architecture = architecture,
      .tensors = kTensors,
      .surgery_only = true,
      .trunk = detail::kDecoderTrunk,
      .memory_names = memory_names,
      .left_out = left_out,
      .has_mtp = true,
      .experts_keys = kExpertsKeys,
      .top_k_key = "num_experts_per_tok",
      .expert_width_key = "moe_intermediate_size",
      .shared_count_key = "n_shared_experts",
      .layers = LayerPattern::kByWeights,
      .gate = GateFunction::kSigmoidTopK,
      .renormalise = Switch::read("norm_topk_prob", true),
      .has_groups = true,
      .has_routed_scaling = true,
  };
}

}  // namespace

extern const Family kDeepseekV32, kKimiK2, kGlmMoeDsa, kGlm4vMoeText, kMimoV2Flash, kAxk1, kAxk2;
const Family kDeepseekV32 = like_version_3("deepseek_v32", "DeepseekV32ForCausalLM");
const Family kKimiK2 = like_version_3("kimi_k2", "DeepseekV3ForCausalLM");
const Family kGlmMoeDsa = like_version_3("glm_moe_dsa", "GlmMoeDsaForCausalLM");
const Family kGlm4vMoeText =
    like_version_3("glm4v_moe_text", "Glm4vMoeForConditionalGeneration", R"({"partial_rotary_factor": 0.5})");
const Family kAxk1 = like_version_3("axk1", "AXK1ForCausalLM");
const Family kAxk2 = like_version_3("axk2", "AXK2ForCausalLM");
const Family kMimoV2Flash = like_version_3("mimo_v2_flash", "MiMoV2FlashForCausalLM",
                                           R"({"sliding_window": 128, "rope_parameters": {
                                               "full_attention": {"rope_theta": 5000000, "partial_rotary_factor": 0.334},
                                               "sliding_attention": {"rope_theta": 10000, "partial_rotary_factor": 0.334}}})",
                                           kMemoryNamesOfMimo);

}  // namespace coppice::families
