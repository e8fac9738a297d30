#include "coppice/families/trunk_detail.h"

namespace coppice::families {

namespace {

using enum Role;
using enum When;

constexpr std::string_view kExpertsKeys[] = {"num_experts"};

// Layers of the decoder are numbered after the encoder's. Experts are two matrices with biases and no gate.
constexpr TensorRule kTensors[] = {
    {"model.encoder.layers.{L}.ffn.router.classifier.weight", kRouter},
    {"model.encoder.layers.{L}.ffn.router.classifier.bias", kRouterBias, {}, kOptional},
    {"model.encoder.layers.{L}.ffn.experts.expert_{X}.fc1.weight", kExpertUp},
    {"model.encoder.layers.{L}.ffn.experts.expert_{X}.fc1.bias", kExpertUpBias},
    {"model.encoder.layers.{L}.ffn.experts.expert_{X}.fc2.weight", kExpertDown},
    {"model.encoder.layers.{L}.ffn.experts.expert_{X}.fc2.bias", kExpertDownBias},
    {"model.encoder.layers.{L}.ffn.fc1.*", kDense},
    {"model.encoder.layers.{L}.ffn.fc2.*", kDense},
    {"model.decoder.layers.{M}.ffn.router.classifier.weight", kRouter},
    {"model.decoder.layers.{M}.ffn.router.classifier.bias", kRouterBias, {}, kOptional},
    {"model.decoder.layers.{M}.ffn.experts.expert_{X}.fc1.weight", kExpertUp},
    {"model.decoder.layers.{M}.ffn.experts.expert_{X}.fc1.bias", kExpertUpBias},
    {"model.decoder.layers.{M}.ffn.experts.expert_{X}.fc2.weight", kExpertDown},
    {"model.decoder.layers.{M}.ffn.experts.expert_{X}.fc2.bias", kExpertDownBias},
    {"model.decoder.layers.{M}.ffn.fc1.*", kDense},
    {"model.decoder.layers.{M}.ffn.fc2.*", kDense},
};
constexpr TensorRule kTrunk[] = {
    {"model.shared.weight", kEmbeddings},
    {"lm_head.weight", kEmbeddings},
    {"model.encoder.embed_*.**", kEmbeddings},
    {"model.decoder.embed_*.**", kEmbeddings},
    {"model.encoder.layer_norm.*", kNorm},
    {"model.decoder.layer_norm.*", kNorm},
    {"model.encoder.layers.{L}.*_layer_norm.*", kNorm},
    {"model.decoder.layers.{M}.*_layer_norm.*", kNorm},
    {"model.encoder.layers.{L}.self_attn.**", kAttention},
    {"model.decoder.layers.{M}.self_attn.**", kAttention},
    {"model.decoder.layers.{M}.cross_attention.**", kAttention},
};

}  // namespace

extern const Family kNllbMoe;
const Family kNllbMoe{
    .model_type = "nllb-moe",
    .architecture = "NllbMoeForConditionalGeneration",
    .tensors = kTensors,
    .surgery_only = true,
    .trunk = kTrunk,
    .layers_key = "encoder_layers",
    .model_dim_key = "d_model",
    .experts_keys = kExpertsKeys,
    .fixed_top_k = 2,
    .expert_width_key = "encoder_ffn_dim",
    .layers = LayerPattern::kByWeights,
    .router = RouterKind::kCapacity,
};

}  // namespace coppice::families
