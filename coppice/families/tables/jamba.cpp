#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.feed_forward.router.weight", kRouter},
    {"model.layers.{L}.feed_forward.experts.{X}.gate_proj.weight", kExpertGate},
    {"model.layers.{L}.feed_forward.experts.{X}.up_proj.weight", kExpertUp},
    {"model.layers.{L}.feed_forward.experts.{X}.down_proj.weight", kExpertDown},
    {"model.layers.{L}.feed_forward.gate_proj.*", kDense},
    {"model.layers.{L}.feed_forward.up_proj.*", kDense},
    {"model.layers.{L}.feed_forward.down_proj.*", kDense},
};

}  // namespace

extern const Family kJamba;
const Family kJamba{
    .model_type = "jamba",
    .architecture = "JambaForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .layers = LayerPattern::kByWeights,
};

}  // namespace coppice::families
