#include "coppice/upcycle/convert_families.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/upcycle/table_detail.h"

namespace coppice::upcycle {
namespace {

using families::Family;
using families::Switch;
using families::TensorRule;
using enum families::Role;
using enum families::Dim;
using enum families::When;

constexpr DenseFamily kDenseFamilies[] = {
    {.model_type = "llama", .to = "mixtral", .bos = 1, .eos = 2, .pad = {}},
    {.model_type = "mistral", .to = "mixtral", .bos = 1, .eos = 2, .pad = {}},
    {.model_type = "qwen2", .to = "qwen2_moe", .bos = {}, .eos = {}, .pad = {}},
    {.model_type = "qwen3", .to = "qwen3_moe", .bos = {}, .eos = {}, .pad = {}},
    {.model_type = "gemma",
     .to = "mixtral",
     .activation = "gelu_pytorch_tanh",
     .norms_add_one = true,
     .scales_embeddings = true,
     .is_tied = true,
     .bos = 2,
     .eos = 1,
     .pad = 0},
};

constexpr MoeFamily kMoeFamilies[] = {
    {.model_type = "mixtral", .to = "mistral", .windows = WindowKeys::kPlain},
    {.model_type = "granitemoe", .to = "llama", .has_multipliers = true},
    {.model_type = "qwen2_moe", .to = "qwen2", .windows = WindowKeys::kByLayer},
    {.model_type = "qwen3_moe", .to = "qwen3", .windows = WindowKeys::kSwitched},
    {.model_type = "glm4_moe", .to = "qwen3"},
};

constexpr std::string_view kGraniteExpertsKeys[] = {"num_local_experts"};

// [experts, out, in], gate the first half of the rows.
constexpr TensorRule kGraniteTensors[] = {
    {"model.embed_tokens.weight", kEmbedding, {kVocab, kModel}},
    {"model.layers.{L}.input_layernorm.weight", kInputNorm, {kModel}},
    {"model.layers.{L}.self_attn.q_proj.weight", kQuery, {kQueryRows, kModel}},
    {"model.layers.{L}.self_attn.q_proj.bias", kQueryBias, {kQueryRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.k_proj.weight", kKey, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.k_proj.bias", kKeyBias, {kKeyValueRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.v_proj.weight", kValue, {kKeyValueRows, kModel}},
    {"model.layers.{L}.self_attn.v_proj.bias", kValueBias, {kKeyValueRows}, kIfQkvBias},
    {"model.layers.{L}.self_attn.o_proj.weight", kAttentionOutput, {kModel, kQueryRows}},
    {"model.layers.{L}.self_attn.o_proj.bias", kAttentionOutputBias, {kModel}, kIfOutputBias},
    {"model.layers.{L}.post_attention_layernorm.weight", kPostAttentionNorm, {kModel}},
    {"model.layers.{L}.block_sparse_moe.router.layer.weight", kRouter, {kExperts, kModel}, kMoeLayer},
    {"model.layers.{L}.block_sparse_moe.input_linear.weight",
     kExpertGateUp,
     {kExperts, kExpertGateUpRows, kModel},
     kMoeLayer,
     families::kStacked},
    {"model.layers.{L}.block_sparse_moe.output_linear.weight",
     kExpertDown,
     {kExperts, kModel, kExpertWidth},
     kMoeLayer,
     families::kStacked},
    {"model.norm.weight", kFinalNorm, {kModel}},
    {"lm_head.weight", kLmHead, {kVocab, kModel}, kIfUntied},
};

constexpr Family kGraniteMoe{
    .model_type = "granitemoe",
    .architecture = "GraniteMoeForCausalLM",
    .tensors = kGraniteTensors,
    .experts_keys = kGraniteExpertsKeys,
    .top_k_key = "num_experts_per_tok",
    .expert_width_key = "intermediate_size",
    .dense_width_key = "",
    .layers = families::LayerPattern::kEveryLayer,
    .gate = families::GateFunction::kTopKSoftmax,
    .has_aux_loss = true,
    .aux_loss_fallback = 0.001,
    .qkv_bias = Switch::read("attention_bias", false),
    .output_bias = Switch::read("attention_bias", false),
    .max_positions_fallback = 2048,
};

template <class Row>
std::string names_of(std::span<const Row> rows) {
  std::vector<std::string> names;
  for (const Row& row : rows) names.emplace_back(row.model_type);
  return join(names);
}

}  // namespace

std::span<const DenseFamily> dense_families() { return kDenseFamilies; }
std::span<const MoeFamily> moe_families() { return kMoeFamilies; }

const DenseFamily& dense_family(std::string_view model_type) {
  for (const DenseFamily& row : kDenseFamilies) {
    if (row.model_type == model_type) return row;
  }
  const Family* known = families::find_family(model_type);
  if (known != nullptr && known->has_moe()) {
    throw Error(ErrorCode::kUnsupported, cat("convert: ", model_type,
                                             " has experts already (grow them with `coppice expand`; --dense-average "
                                             "makes one feed-forward of them)"));
  }
  throw Error(ErrorCode::kUnsupported, cat("convert: dense models of the family ", model_type,
                                           " cannot be converted; known: ", names_of(dense_families())));
}

const MoeFamily& moe_family(std::string_view model_type) {
  std::vector<std::string> names;
  for (const MoeFamily& row : kMoeFamilies) {
    if (row.model_type == model_type) return row;
    names.emplace_back(row.model_type);
  }
  throw Error(ErrorCode::kUsage,
              cat("to: '", model_type, "' is no family to convert to", suggestion(model_type, names)));
}

const MoeFamily& family_to_average(std::string_view model_type, std::string_view to) {
  const auto moe = std::ranges::find(kMoeFamilies, model_type, &MoeFamily::model_type);
  if (moe == std::end(kMoeFamilies)) {
    throw Error(ErrorCode::kUnsupported, cat("dense-average: models of the family ", model_type,
                                             " cannot be averaged; known: ", names_of(moe_families())));
  }
  std::vector<std::string> names;
  for (const DenseFamily& row : kDenseFamilies) {
    if (!row.norms_add_one) names.emplace_back(row.model_type);
  }
  if (!to.empty() && std::ranges::find(names, to) == names.end())
    throw Error(ErrorCode::kUsage, cat("to: '", to, "' is no dense family to average to", suggestion(to, names)));
  return *moe;
}

const Family& whole_family(std::string_view model_type) {
  return model_type == kGraniteMoe.model_type ? kGraniteMoe : families::family_of(model_type);
}

}  // namespace coppice::upcycle
