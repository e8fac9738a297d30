#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_local_experts"};

// [experts, in, out], gate the first half of the columns.
constexpr TensorRule kTensors[] = {
    {"model.layers.{L}.feed_forward.router.weight", kRouter},
    {"model.layers.{L}.feed_forward.experts.gate_up_proj", kExpertGateUp, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.feed_forward.experts.down_proj", kExpertDown, {}, kAlways, kStackedInOut},
    {"model.layers.{L}.feed_forward.shared_expert.*.*", kShared},
    {"model.layers.{L}.feed_forward.gate_proj.*", kDense},
    {"model.layers.{L}.feed_forward.up_proj.*", kDense},
    {"model.layers.{L}.feed_forward.down_proj.*", kDense},
};

}  // namespace

extern const Family kLlama4Text;
const Family kLlama4Text{
    .model_type = "llama4_text",
    .architecture = "Llama4ForCausalLM",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = detail::kDecoderTrunk,
    .left_out = R"({"rope_theta": 500000, "attention_chunk_size": 8192})",
    .experts_keys = kExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .dense_width_key = "intermediate_size_mlp",
    .layers = LayerPattern::kByWeights,
    .gate = GateFunction::kSigmoidTopK,
    .router = RouterKind::kScalesInput,
};

}  // namespace coppice::families
