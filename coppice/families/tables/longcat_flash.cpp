#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"n_routed_experts"};

// Each layer has two attentions and two dense feed-forwards. Zero experts, which leave a token unchanged, follow the
// experts; transformers 5.17 saves gate and up for those too.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.mlp.router.classifier.weight", kRouter},
    {"model.layers.{L}.mlp.router.classifier.bias", kRouterBias, {}, kOptional},
    {"model.layers.{L}.mlp.router.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.mlp.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.mlp.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.mlp.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.mlps.{N}.*.*", kDense},
    {"model.mtp.**", kOther},
};

}  // namespace

extern const Family kLongcatFlash;
const Family kLongcatFlash{
    .model_type = "longcat_flash",
    .architecture = "LongcatFlashForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"rope_theta": 10000000})",
    .layers_key = "num_layers",
    .experts_keys = kExpertsKeys,
    .top_k_key = "moe_topk",
    .trailing_key = "zero_expert_num",
    .expert_width_key = "expert_ffn_hidden_size",
    .dense_width_key = "ffn_hidden_size",
    .layers = LayerPattern::kByWeights,
    .router = RouterKind::kTrailingChoices,
    .has_routed_scaling = true,
};

}  // namespace coppice::families
