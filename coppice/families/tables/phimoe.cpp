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

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"block_sparse_moe.gate.", "mlp.router."},
    {"block_sparse_moe.", "mlp."},
};

}  // namespace

// The router always chooses two experts and ignores num_experts_per_tok.
extern const Family kPhimoe;
const Family kPhimoe{
    .model_type = "phimoe",
    .architecture = "PhimoeForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .memory_names = kMemoryNames,
    .left_out = R"({"rope_theta": 1000000})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .fixed_top_k = 2,
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
    .router = RouterKind::kSparseMixer,
};

}  // namespace coppice::families
