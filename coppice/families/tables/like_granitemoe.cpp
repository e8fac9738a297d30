#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

// Families with other layers than attention: expand only.

constexpr std::string_view kExpertsKeys[] = {"num_local_experts"};

// [experts, out, in], gate the first half of the rows.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.block_sparse_moe.router.layer.weight", kRouter},
    {"model.layers.{L}.block_sparse_moe.input_linear.weight", kExpertGateUp, {}, kAlways, kStacked},
    {"model.layers.{L}.block_sparse_moe.output_linear.weight", kExpertDown, {}, kAlways, kStacked},
    {"model.layers.{L}.shared_mlp.*.*", kShared},
};

constexpr TensorRule kTensorsOfSwa[] = {
    {"model.layers.{L}.block_sparse_moe.router.weight", kRouter},
    {"model.layers.{L}.block_sparse_moe.experts.gate_up_proj", kExpertGateUp, {}, kAlways, kStacked},
    {"model.layers.{L}.block_sparse_moe.experts.down_proj", kExpertDown, {}, kAlways, kStacked},
    {"model.layers.{L}.shared_mlp.*.*", kShared},
};

// Names in memory, see Family::memory_names.
constexpr Rename kMemoryNames[] = {
    {"block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"},
    {"block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"},
    {"block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"},
};

constexpr Family like_granitemoe(std::string_view model_type, std::string_view architecture,
                                 std::span<const TensorRule> tensors = kTensors, std::string_view left_out = {}) {
  return {
      .model_type = model_type,
      .architecture = architecture,
      .tensors = tensors,
      .surgery_only = true,
      .trunk = detail::kDecoderTrunk,
      .memory_names = kMemoryNames,
      .left_out = left_out,
      .experts_keys = kExpertsKeys,
      .top_k_key = "num_experts_per_tok",
      .expert_width_key = "intermediate_size",
      .shared_width_key = "shared_intermediate_size",
      .layers = LayerPattern::kByWeights,
      .gate = GateFunction::kTopKSoftmax,
  };
}

}  // namespace

extern const Family kGraniteMoeHybrid, kGraniteMoeSwa;
const Family kGraniteMoeHybrid = like_granitemoe("granitemoehybrid", "GraniteMoeHybridForCausalLM");
const Family kGraniteMoeSwa =
    like_granitemoe("granitemoe_swa", "GraniteMoeSwaForCausalLM", kTensorsOfSwa, R"({"sliding_window": 128})");

}  // namespace coppice::families
