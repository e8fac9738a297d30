#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"n_routed_experts"};

// Every layer has one mixer: Mamba, attention, a feed-forward or experts. Experts have no gate (squared ReLU).
constexpr TensorRule kTensors[] = {
    {"backbone.layers.{L}.mixer.gate.weight", kRouter},
    {"backbone.layers.{L}.mixer.gate.e_score_correction_bias", kSelectionBias},
    {"backbone.layers.{L}.mixer.experts.{X}.up_proj.weight", kExpertUp},
    {"backbone.layers.{L}.mixer.experts.{X}.down_proj.weight", kExpertDown},
    {"backbone.layers.{L}.mixer.shared_experts.*.*", kShared},
    {"backbone.layers.{L}.mixer.*_latent_proj.*", kShared},
    {"backbone.layers.{L}.mixer.up_proj.*", kDense},
    {"backbone.layers.{L}.mixer.down_proj.*", kDense},
    {"mtp.layers.{M}.mixer.gate.weight", kRouter},
    {"mtp.layers.{M}.mixer.gate.e_score_correction_bias", kSelectionBias},
    {"mtp.layers.{M}.mixer.experts.{X}.up_proj.weight", kExpertUp},
    {"mtp.layers.{M}.mixer.experts.{X}.down_proj.weight", kExpertDown},
    {"mtp.layers.{M}.mixer.shared_experts.*.*", kShared},
    {"mtp.layers.{M}.mixer.*_latent_proj.*", kShared},
};
constexpr TensorRule kTrunk[] = {
    {"backbone.embeddings.weight", kEmbeddings},
    {"lm_head.weight", kEmbeddings},
    {"backbone.norm_f.weight", kNorm},
    {"backbone.layers.{L}.norm.weight", kNorm},
    {"backbone.layers.{L}.mixer.A_log", kAttention},
    {"backbone.layers.{L}.mixer.D", kAttention},
    {"backbone.layers.{L}.mixer.dt_bias", kAttention},
    {"backbone.layers.{L}.mixer.conv1d.*", kAttention},
    {"backbone.layers.{L}.mixer.norm.*", kAttention},
    {"backbone.layers.{L}.mixer.in_proj.*", kAttention},
    {"backbone.layers.{L}.mixer.out_proj.*", kAttention},
    {"backbone.layers.{L}.mixer.q_proj.*", kAttention},
    {"backbone.layers.{L}.mixer.k_proj.*", kAttention},
    {"backbone.layers.{L}.mixer.v_proj.*", kAttention},
    {"backbone.layers.{L}.mixer.o_proj.*", kAttention},
    {"mtp.layers.{M}.*norm*.*", kNorm},
    {"mtp.layers.{M}.eh_proj.*", kOther},
    {"mtp.layers.{M}.mixer.q_proj.*", kAttention},
    {"mtp.layers.{M}.mixer.k_proj.*", kAttention},
    {"mtp.layers.{M}.mixer.v_proj.*", kAttention},
    {"mtp.layers.{M}.mixer.o_proj.*", kAttention},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"backbone.", "model."},
};

}  // namespace

extern const Family kNemotronH;
const Family kNemotronH{
    .model_type = "nemotron_h",
    .architecture = "NemotronHForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = kTrunk,
    .memory_names = kMemoryNames,
    .has_mtp = true,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "moe_intermediate_size",
    .shared_width_key = "moe_shared_expert_intermediate_size",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::read("norm_topk_prob", true),
    .has_groups = true,
    .has_routed_scaling = true,
};

}  // namespace coppice::families
