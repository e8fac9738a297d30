#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.block_sparse_moe.gate.weight", kRouter},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w1.weight", kExpertGate},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w3.weight", kExpertUp},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w2.weight", kExpertDown},
};
constexpr TensorRule kTensorsWithBias[] = {
    {"model.layers.{L}.block_sparse_moe.gate.weight", kRouter},
    {"model.layers.{L}.block_sparse_moe.e_score_correction_bias", kSelectionBias},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w1.weight", kExpertGate},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w3.weight", kExpertUp},
    {"model.layers.{L}.block_sparse_moe.experts.{X}.w2.weight", kExpertDown},
};

}  // namespace

extern const Family kMinimax, kMinimaxM2;
const Family kMinimax{
    .model_type = "minimax",
    .architecture = "MiniMaxForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
    .renormalise = Switch::yes(),
};
const Family kMinimaxM2{
    .model_type = "minimax_m2",
    .architecture = "MiniMaxM2ForCausalLM",
    .tensors = kTensorsWithBias,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .has_mtp = true,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .renormalise = Switch::yes(),
};

}  // namespace coppice::families
