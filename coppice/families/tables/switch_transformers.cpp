#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

// Layers of the decoder are numbered after the encoder's. Experts are two matrices without a gate.
constexpr TensorRule kTensors[] = {
    {"encoder.block.{L}.layer.{N}.mlp.router.classifier.weight", kRouter},
    {"encoder.block.{L}.layer.{N}.mlp.router.classifier.bias", kRouterBias, {}, kOptional},
    {"encoder.block.{L}.layer.{N}.mlp.experts.expert_{X}.wi.weight", kExpertUp},
    {"encoder.block.{L}.layer.{N}.mlp.experts.expert_{X}.wo.weight", kExpertDown},
    {"encoder.block.{L}.layer.{N}.mlp.wi.*", kDense},
    {"encoder.block.{L}.layer.{N}.mlp.wo.*", kDense},
    {"decoder.block.{M}.layer.{N}.mlp.router.classifier.weight", kRouter},
    {"decoder.block.{M}.layer.{N}.mlp.router.classifier.bias", kRouterBias, {}, kOptional},
    {"decoder.block.{M}.layer.{N}.mlp.experts.expert_{X}.wi.weight", kExpertUp},
    {"decoder.block.{M}.layer.{N}.mlp.experts.expert_{X}.wo.weight", kExpertDown},
    {"decoder.block.{M}.layer.{N}.mlp.wi.*", kDense},
    {"decoder.block.{M}.layer.{N}.mlp.wo.*", kDense},
};
constexpr TensorRule kTrunk[] = {
    {"shared.weight", kEmbeddings},
    {"lm_head.weight", kEmbeddings},
    {"encoder.embed_tokens.weight", kEmbeddings},
    {"decoder.embed_tokens.weight", kEmbeddings},
    {"encoder.final_layer_norm.weight", kNorm},
    {"decoder.final_layer_norm.weight", kNorm},
    {"encoder.block.{L}.layer.{N}.layer_norm.weight", kNorm},
    {"decoder.block.{M}.layer.{N}.layer_norm.weight", kNorm},
    {"encoder.block.{L}.layer.{N}.SelfAttention.**", kAttention},
    {"decoder.block.{M}.layer.{N}.SelfAttention.**", kAttention},
    {"decoder.block.{M}.layer.{N}.EncDecAttention.**", kAttention},
};

}  // namespace

extern const Family kSwitchTransformers;
const Family kSwitchTransformers{
    .model_type = "switch_transformers",
    .architecture = "SwitchTransformersForConditionalGeneration",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = kTrunk,
    .layers_key = "num_layers",
    .model_dim_key = "d_model",
    .experts_keys = kExpertsKeys,
    .fixed_top_k = 1,
    .expert_width_key = "d_ff",
    .layers = LayerPattern::kByWeights,
    .router = RouterKind::kCapacity,
};

}  // namespace coppice::families
