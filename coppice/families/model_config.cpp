#include "coppice/families/model_config.h"

#include <algorithm>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/families/attention_config_detail.h"
#include "coppice/families/config_reader_detail.h"
#include "coppice/families/count_keys_detail.h"
#include "coppice/families/limits.h"
#include "coppice/families/quantization.h"
#include "coppice/families/router_keys_detail.h"

namespace coppice::families {

namespace {

using detail::ConfigReader;
using detail::read_switch;

constexpr int64_t kLargestDim = int64_t{1} << 31;
constexpr double kMostParameters = 0x1p60;
constexpr double kLargestNumber = 1e12;

void read_sizes(const ConfigReader& in, ModelConfig& c) {
  const Family& family = *c.family;
  c.num_layers = in.whole("num_hidden_layers", 1, kMaxLayers);
  c.model_dim = in.whole("hidden_size", 1, kLargestDim);
  c.vocab_size = in.whole("vocab_size", 1, kLargestDim);
  c.num_heads = in.whole("num_attention_heads", 1, kLargestDim);
  const int64_t kv_heads = family.kv_heads_fallback == 0 ? c.num_heads : family.kv_heads_fallback;
  c.num_kv_heads = in.whole_or("num_key_value_heads", kv_heads, 1, kLargestDim);
  if (c.num_heads % c.num_kv_heads != 0)
    in.refuse("num_attention_heads", cat("a multiple of the ", c.num_kv_heads, " key-value heads"));
  const int64_t head_dim = family.head_dim_fallback == 0 ? c.model_dim / c.num_heads : family.head_dim_fallback;
  c.head_dim = in.whole_or("head_dim", head_dim, 1, kLargestDim);
  if (c.head_dim == 0) in.refuse("num_attention_heads", cat("at most the hidden_size, ", c.model_dim));
  c.max_positions = in.whole_or("max_position_embeddings", family.max_positions_fallback, 1, kLargestDim);
}

// Sizes that are only printed, if they are present.
void read_sizes_for_surgery(const ConfigReader& in, ModelConfig& c) {
  const auto size_or_none = [&in](std::string_view key) {
    const Json* value = in.find(key);
    const bool is_size = value != nullptr && value->kind() == Json::Kind::kInt && value->as_int() > 0;
    return is_size ? std::min(value->as_int(), kLargestDim) : 0;
  };
  c.num_layers = in.whole_or(c.family->layers_key, 0, 1, kMaxLayers);  // 0: determined by the weights
  const Json* blocks = in.find("layers_block_type");
  if (c.num_layers == 0 && blocks != nullptr && blocks->is_array())
    c.num_layers = std::min(static_cast<int64_t>(blocks->items().size()), kMaxLayers);
  c.model_dim = size_or_none(c.family->model_dim_key);
  c.vocab_size = size_or_none("vocab_size");
  c.num_heads = size_or_none("num_attention_heads");
  c.num_kv_heads = size_or_none("num_key_value_heads");
  c.head_dim = size_or_none("head_dim");
  c.max_positions = size_or_none("max_position_embeddings");
  c.expert_width = size_or_none(c.family->expert_width_key);
  c.dense_width = size_or_none(c.family->dense_width_key);
  c.unsupported_in_nn.emplace_back(cat("models of the family ", c.family->model_type));
}

std::vector<bool> moe_layers(const ConfigReader& in, const Family& family, int64_t num_layers) {
  std::vector<bool> moe(static_cast<size_t>(num_layers), family.has_moe());
  if (family.layers == LayerPattern::kFirstDense) {
    const int64_t dense = in.whole_or("first_k_dense_replace", family.first_dense_fallback, 0, kMaxLayers);
    std::fill_n(moe.begin(), std::min(dense, num_layers), false);
  }
  if (family.layers == LayerPattern::kByTypes) {
    std::fill_n(moe.begin(), std::min(family.first_dense_fallback, num_layers), false);
    if (const Json* types = in.find("mlp_layer_types")) {
      const bool fits = types->is_array() && static_cast<int64_t>(types->items().size()) >= num_layers;
      if (!fits) in.refuse("mlp_layer_types", "a list with one text per layer");
      for (size_t i = 0; i < moe.size(); ++i) moe[i] = types->items()[i] == Json("sparse");
    }
  }
  if (family.layers == LayerPattern::kSparseStep) {
    const int64_t step = in.whole_or("decoder_sparse_step", 1, 1, kMaxLayers);
    for (int64_t layer = 0; layer < num_layers; ++layer) moe[static_cast<size_t>(layer)] = (layer + 1) % step == 0;
    if (const Json* dense = in.find("mlp_only_layers")) {
      constexpr std::string_view kWanted = "a list of layers";
      if (!dense->is_array()) in.refuse("mlp_only_layers", kWanted);
      for (const Json& item : dense->items()) {
        if (item.kind() != Json::Kind::kInt) in.refuse("mlp_only_layers", kWanted);
        if (item.as_int() >= 0 && item.as_int() < num_layers) moe[static_cast<size_t>(item.as_int())] = false;
      }
    }
  }
  return moe;
}

// A whole number, or a list that has it for every layer.
int64_t read_count(const ConfigReader& in, const Family& family, std::string_view key) {
  const Json& value = in.at(key);
  if (!family.counts_by_layer || !value.is_array() || value.items().empty()) return in.whole(key, 1, kMaxExperts);
  const Json& first = value.items().front();
  const bool alike = std::ranges::all_of(value.items(), [&first](const Json& item) { return item == first; });
  const bool is_count = first.kind() == Json::Kind::kInt && first.as_int() >= 1 && first.as_int() <= kMaxExperts;
  if (!alike || !is_count)
    in.refuse(key, "one whole number for all layers (coppice expands all layers to the same number)");
  return first.as_int();
}

int64_t read_num_experts(const ConfigReader& in, const Family& family) {
  const std::vector<std::string_view> keys =
      detail::keys_present(in, family, detail::Count::kExperts);  // the family's own first
  if (keys.empty()) (void)in.at(family.experts_keys.front());     // throws
  const int64_t experts = read_count(in, family, keys.front());
  for (const std::string_view key : keys) {
    const bool is_own = std::ranges::find(family.experts_keys, key) != family.experts_keys.end();
    if (!is_own && in.at(key).kind() != Json::Kind::kInt) continue;  // lists by layer
    if (read_count(in, family, key) != experts) detail::refuse_difference(in, key, keys.front());
  }
  return experts;
}

// One number, or one for each layer (hunyuan_v1_moe): [num_layers].
std::vector<int64_t> read_top_k(const ConfigReader& in, const Family& family, int64_t num_layers) {
  const std::vector<std::string_view> keys = detail::keys_present(in, family, detail::Count::kTopK);
  const std::string_view key = keys.empty() ? family.top_k_key : keys.front();
  for (const std::string_view other : keys) {
    if (*in.find(other) != *in.find(key)) detail::refuse_difference(in, other, key);
  }
  const Json& value = in.at(key);
  if (!family.counts_by_layer || !value.is_array()) return {in.whole(key, 1, kMaxExperts)};
  std::vector<int64_t> numbers;
  for (const Json& item : value.items()) {
    const bool is_whole = item.kind() == Json::Kind::kInt && item.as_int() >= 1 && item.as_int() <= kMaxExperts;
    if (!is_whole) in.refuse(key, "whole numbers from 1 on");
    numbers.push_back(item.as_int());
  }
  if (numbers.empty() || std::cmp_less(numbers.size(), num_layers))
    in.refuse(key, cat("one number for each of the ", num_layers, " layers"));
  return numbers;
}

void read_experts(const ConfigReader& in, ModelConfig& c) {
  const Family& family = *c.family;
  c.moe_layer = moe_layers(in, family, c.num_layers);
  const bool has_dense_layer = c.num_moe_layers() < c.num_layers;
  if (family.surgery_only) {
    // the sizes are printed if present, and not needed otherwise
  } else if (has_dense_layer || (!family.dense_width_key.empty() && in.find(family.dense_width_key) != nullptr)) {
    c.dense_width = in.whole(family.dense_width_key, 1, kLargestDim);
  }
  if (!family.has_moe()) return;
  c.num_experts = read_num_experts(in, family);
  if (c.num_experts * c.num_moe_layers() > kMaxExpertsInAll) {
    in.refuse("num_hidden_layers", cat("at most ", kMaxExpertsInAll, " experts over all layers, not ", c.num_experts,
                                       " in each of ", c.num_moe_layers()));
  }
  if (family.fixed_top_k > 0) {
    c.top_k = family.fixed_top_k;
  } else {
    std::vector<int64_t> top_k = read_top_k(in, family, c.num_layers);
    c.top_k = *std::ranges::max_element(top_k);
    if (in.find(family.top_k_key) != nullptr && in.at(family.top_k_key).is_array()) c.top_k_by_layer = std::move(top_k);
  }
  c.routing.fixed_top_k = family.fixed_top_k > 0;
  c.routing.trailing_choices = family.trailing_choices;
  if (!family.trailing_key.empty()) c.routing.trailing_choices = in.whole_or(family.trailing_key, 0, 0, kMaxExperts);
  if (c.top_k > c.router_rows()) in.refuse(family.top_k_key, cat("at most the number of experts, ", c.num_experts));
  if (family.surgery_only) return;
  c.expert_width = in.whole(family.expert_width_key, 1, kLargestDim);
  if (!family.shared_width_key.empty()) c.shared_width = in.whole(family.shared_width_key, 0, kLargestDim);
  if (!family.shared_count_key.empty())
    c.shared_width = in.whole(family.shared_count_key, 0, kMaxExperts) * c.expert_width;
}

void read_routing(const ConfigReader& in, ModelConfig& c) {
  const Family& family = *c.family;
  Routing& r = c.routing;
  r.gate = family.gate;
  if (!family.sigmoid_key.empty() && in.text_or(family.sigmoid_key, "") == "sigmoid")
    r.gate = GateFunction::kSigmoidTopK;
  detail::check_router_keys(in, family, r.gate);
  r.kind = family.router;
  r.group_score = family.group_score;
  r.group_score_known = family.group_score_known;
  Switch renormalise = family.renormalise;
  renormalise.key = detail::alias_present(in, renormalise.key);
  r.renormalise = read_switch(in, renormalise);
  if (!family.gate_norm_key.empty()) r.gate_norm = detail::read_gate_norm(in, family.gate_norm_key);
  if (r.gate_norm == 0 || (c.top_k == 1 && !family.renormalises_top_1)) r.renormalise = false;
  const bool is_stated = family.renormalise.kind != Switch::Kind::kUnknown &&
                         (renormalise.fallback_known || in.find(renormalise.key) != nullptr);
  r.renormalise_known = is_stated || r.gate == GateFunction::kTopKSoftmax;
  r.renormalise_epsilon = family.renormalise_epsilon;
  r.adds_selection_bias = read_switch(in, family.selection_bias_on);
  r.has_selection_bias = r.adds_selection_bias && family.has_role(Role::kSelectionBias);
  r.bias_on_logits = family.bias_on_logits;
  r.has_router_bias = family.has_role(Role::kRouterBias);
  if (family.has_routed_scaling)
    r.routed_scaling =
        in.number_or(family.routed_scaling_key, family.routed_scaling_fallback, -kLargestNumber, kLargestNumber);
  if (!family.aux_loss_key.empty() && (family.aux_loss_fallback > 0 || in.find(family.aux_loss_key) != nullptr))
    c.aux_loss_coef = in.number_or(family.aux_loss_key, family.aux_loss_fallback, 0, kLargestNumber);
  if (!family.has_groups) return detail::check_no_groups(in, family);
  if (!family.groups_on_key.empty() && in.text_or(family.groups_on_key, "") != family.groups_on_value) return;
  const std::string_view groups_key = detail::alias_present(in, family.num_groups_key);
  r.num_groups = in.whole_or(groups_key, family.num_groups_fallback, 1, c.num_experts);
  r.top_groups = in.whole_or(family.top_groups_key, family.top_groups_fallback, 1, c.num_experts);
  if (r.top_groups > r.num_groups) in.refuse(family.top_groups_key, cat("at most ", groups_key, ", ", r.num_groups));
  if (c.num_experts % r.num_groups != 0) in.refuse(groups_key, cat("a divisor of the ", c.num_experts, " experts"));
  const int64_t group = c.num_experts / r.num_groups;
  if (group < 2 && r.group_score == GroupScore::kBestTwo)
    in.refuse(r.num_groups > 1 ? groups_key : family.experts_keys.front(),
              "two or more experts per group (a group is scored by its best two)");
  if (c.top_k > r.top_groups * group)
    in.refuse(family.top_k_key, cat("at most the ", r.top_groups * group, " experts of the groups chosen"));
}

double parameters_at_most(const ModelConfig& c) {
  double total = 0;
  for (const TensorRule& rule : c.family->tensors) {
    double elements = rule.per_layer() ? static_cast<double>(c.num_layers) : 1;
    if (rule.per_expert()) elements *= static_cast<double>(c.num_experts);
    for (const int64_t size : c.shape(rule)) elements *= static_cast<double>(size);
    total += elements;
  }
  return total;
}

// The object that describes a language model of a known family: the whole file, or the text part of a multimodal
// model's configuration.
struct TextSection {
  const Json* json;
  const Family* family;
  std::string_view key;
};

TextSection find_text_section(const Json& config, const ConfigReader& in, std::string_view source,
                              const Family* given) {
  const Json& type = in.at("model_type");
  if (!type.is_string()) in.refuse("model_type", "a text");
  const auto known = [given](const std::string& name) -> const Family* {
    if (given != nullptr) return given->model_type == name ? given : nullptr;
    return find_family(name);
  };
  if (const Family* family = known(type.as_string())) return {&config, family, {}};
  for (const std::string_view key : {"text_config", "language_config", "llm_config"}) {
    const Json* text = in.find(key);
    if (text == nullptr || !text->is_object()) continue;
    const Json* text_type = text->find("model_type");
    const bool is_named = text_type != nullptr && text_type->is_string();
    const Family* family = known(is_named ? text_type->as_string() : type.as_string() + "_text");
    if (family != nullptr) return {text, family, key};
  }
  if (given != nullptr) {
    throw Error(ErrorCode::kUnsupported,
                cat(source, ": model_type is '", type.as_string(), "', but the given family is '", given->model_type,
                    "' (give the family file of this model)"));
  }
  try {
    return {&config, &family_of(type.as_string()), {}};  // throws
  } catch (const Error& error) {
    throw Error(error.code, cat(source, ": ", error.what()));
  }
}

}  // namespace

namespace {

/// A family file that names a key which is not there is mistaken: what the key decides would be taken as unsaid.
void check_named_keys(const ConfigReader& in, const Family& family) {
  for (const std::string_view key : family.named_keys) {
    const std::vector<std::string_view> names = detail::aliases_of(key);
    if (std::ranges::any_of(names, [&in](std::string_view name) { return in.find_even_null(name) != nullptr; }))
      continue;
    if (key == family.top_k_key && !detail::keys_present(in, family, detail::Count::kTopK).empty()) continue;
    throw Error(ErrorCode::kFormat, cat(in.source(), ": has no key '", key,
                                        "', which the family file names (correct the name there, or leave "
                                        "it out)"));
  }
}

}  // namespace

ModelConfig read_config(const Json& config, std::string_view source, const Family* family) {
  if (!config.is_object())
    throw Error(ErrorCode::kFormat, cat(source, ": is not a JSON object; wanted the configuration of a model"));
  const TextSection part = find_text_section(config, ConfigReader(config, source), source, family);
  const std::string part_source = part.key.empty() ? std::string(source) : cat(source, ": ", part.key);
  const ConfigReader in(*part.json, part_source);

  ModelConfig c;
  c.family = part.family;
  c.json = config;
  c.text_key = part.key;
  check_named_keys(in, *c.family);
  if (c.family->surgery_only) {
    read_sizes_for_surgery(in, c);
  } else {
    read_sizes(in, c);
  }
  read_experts(in, c);
  if (c.is_moe()) read_routing(in, c);
  c.quantisation = detail::quantisation_text(config, *part.json);
  c.quantised_bits = detail::quantised_bits(config, *part.json);
  if (c.is_quantised()) c.unsupported_in_nn.push_back(cat("weights quantised with ", c.quantisation));
  if (!c.family->surgery_only) detail::read_attention(*part.json, part_source, c);
  if (c.family->fixed_head_dim && c.num_heads * c.head_dim != c.model_dim) {
    in.refuse("hidden_size", cat("the ", c.num_heads, " heads of ", c.head_dim, " together, as in this family"));
  }
  if (!c.text_key.empty()) c.unsupported_in_nn.emplace_back("the language model inside a multimodal one");
  c.tied = in.flag_or("tie_word_embeddings", c.family->tied_fallback);
  c.dtype = in.text_or("dtype", in.text_or("torch_dtype", ""));
  if (parameters_at_most(c) > kMostParameters) {
    throw Error(
        ErrorCode::kFormat,
        cat(source, ": these sizes give more than 2^60 parameters (use the config.json that belongs to the weights)"));
  }
  return c;
}

int64_t ModelConfig::top_k_of(int64_t layer) const {
  const auto listed = static_cast<int64_t>(top_k_by_layer.size());
  return layer >= 0 && layer < listed && layer < num_layers ? top_k_by_layer[static_cast<size_t>(layer)] : top_k;
}

double ModelConfig::mean_top_k() const {
  double sum = 0;
  for (size_t layer = 0; layer < moe_layer.size(); ++layer) {
    if (moe_layer[layer]) sum += static_cast<double>(top_k_of(static_cast<int64_t>(layer)));
  }
  return num_moe_layers() == 0 ? static_cast<double>(top_k) : sum / static_cast<double>(num_moe_layers());
}

std::string ModelConfig::top_k_text() const {
  int64_t least = top_k;
  for (size_t layer = 0; layer < moe_layer.size(); ++layer) {
    if (moe_layer[layer]) least = std::min(least, top_k_of(static_cast<int64_t>(layer)));
  }
  return least == top_k ? cat(top_k) : cat(least, " to ", top_k);
}

int64_t ModelConfig::dim(Dim dim) const {
  switch (dim) {
    case Dim::kVocab: return vocab_size;
    case Dim::kModel: return model_dim;
    case Dim::kQueryRows: return num_heads * head_dim;
    case Dim::kKeyValueRows: return num_kv_heads * head_dim;
    case Dim::kHeadDim: return head_dim;
    case Dim::kDenseWidth: return dense_width;
    case Dim::kExpertWidth: return expert_width;
    case Dim::kSharedWidth: return shared_width;
    case Dim::kExperts: return num_experts;
    case Dim::kOne: return 1;
    case Dim::kHeads: return num_heads;
    case Dim::kValueRows: return num_heads * (latent ? latent->value_dim : head_dim);
    case Dim::kExpertGateUpRows: return 2 * expert_width;
    case Dim::kSharedGateUpRows: return 2 * shared_width;
    case Dim::kDenseGateUpRows: return 2 * dense_width;
    case Dim::kQueryKeyValueRows: return (num_heads + 2 * num_kv_heads) * head_dim;
    case Dim::kQueryLatent: return latent ? latent->query_rank : 0;
    case Dim::kKeyValueLatent: return latent ? latent->key_value_rank : 0;
    case Dim::kKeyValueLatentRows: return latent ? latent->key_value_rank + latent->turned_dim : 0;
    case Dim::kKeyValueUpRows: return latent ? num_heads * (latent->plain_dim + latent->value_dim) : 0;
  }
  COPPICE_CHECK(false, "dimension ", static_cast<int>(dim));
}

std::vector<int64_t> ModelConfig::shape(const TensorRule& rule) const {
  std::vector<int64_t> sizes;
  for (const Dim d : rule.shape) sizes.push_back(dim(d));
  return sizes;
}

bool ModelConfig::present(When when, int64_t layer) const {
  const bool moe = layer >= 0 && moe_layer.at(static_cast<size_t>(layer));
  switch (when) {
    case When::kAlways: return true;
    case When::kIfUntied: return !tied;
    case When::kIfQkvBias: return qkv_bias;
    case When::kIfOutputBias: return output_bias;
    case When::kIfQkNorm: return qk_norm != QkNorm::kNone;
    case When::kIfQueryLatent: return latent && latent->query_rank > 0;
    case When::kIfNoQueryLatent: return latent && latent->query_rank == 0;
    case When::kIfQueryLatentAndBias: return latent && latent->query_rank > 0 && qkv_bias;
    case When::kDenseLayer: return layer >= 0 && !moe;
    case When::kDenseLayerIfBias: return layer >= 0 && !moe && mlp_bias;
    case When::kMoeLayer: return moe;
    case When::kMoeLayerIfShared: return moe && shared_width > 0;
    case When::kOptional: return false;
  }
  COPPICE_CHECK(false, "condition ", static_cast<int>(when));
}

int64_t ModelConfig::num_moe_layers() const { return std::count(moe_layer.begin(), moe_layer.end(), true); }

}  // namespace coppice::families
