#include <algorithm>
#include <map>

#include "coppice/base/check.h"
#include "coppice/families/match.h"
#include "coppice/families/quantization.h"

namespace coppice::families {

int64_t& ParameterCount::component(Component which) {
  switch (which) {
    case Component::kEmbeddings: return embeddings;
    case Component::kAttention: return attention;
    case Component::kDense: return dense;
    case Component::kShared: return shared;
    case Component::kRouters: return routers;
    case Component::kExperts: return experts;
    case Component::kNorms: return norms;
    case Component::kOther: return other;
  }
  COPPICE_CHECK(false, "component ", static_cast<int>(which));
}

ParameterCount count_parameters(const ModelConfig& config) {
  ParameterCount count;
  for (const TensorRule& rule : config.family->tensors) {
    if (rule.role == Role::kSelectionBias) continue;
    int64_t elements = rule.per_expert() ? config.num_experts : 1;
    for (const int64_t size : config.shape(rule)) elements *= size;
    if (rule.per_layer()) {
      int64_t layers = 0;
      for (int64_t layer = 0; layer < config.num_layers; ++layer) layers += config.present(rule.when, layer) ? 1 : 0;
      elements *= layers;
    } else if (!config.present(rule.when, -1)) {
      continue;
    }
    count.component(component_of(rule.role)) += elements;
    count.total += elements;
  }
  count.active = count.total;
  if (config.is_moe()) {
    const int64_t of_layer = count.experts / std::max<int64_t>(config.num_moe_layers(), 1) / config.num_experts;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      if (config.moe_layer[static_cast<size_t>(layer)])
        count.active -= of_layer * (config.num_experts - config.top_k_of(layer));
    }
  }
  return count;
}

namespace {

/// The number of values in a tensor of quantised weights: several per element if they are packed, none for scales.
int64_t quantised_values(const TensorSlot& slot, const io::TensorInfo& info, int64_t bits) {
  const bool is_packed = detail::holds_packed_values(slot.name);
  const bool is_integer = !io::is_float(info.dtype) && io::dtype_bytes(info.dtype) > 0;
  if (is_packed || (is_integer && slot.name.ends_with(".weight"))) {
    const int64_t element_bits = 8 * static_cast<int64_t>(io::dtype_bytes(info.dtype));
    return bits > 0 ? info.elements() * element_bits / bits : info.elements();
  }
  constexpr std::string_view kBeside[] = {"_scale",      "_scales", "_scale_inv",   "_scale_2", ".scales",
                                          ".qzeros",     ".g_idx",  "_shape",       ".absmax",  ".quant_map",
                                          "_zero_point", "_g_idx",  "_global_scale"};
  const bool is_beside = std::ranges::any_of(kBeside, [&](std::string_view end) { return slot.name.ends_with(end); });
  return is_beside || slot.role() == Role::kExpertCompanion ? 0 : info.elements();
}

}  // namespace

ParameterCount count_parameters(const Model& model, int64_t num_experts) {
  const ModelConfig& config = model.config;
  if (num_experts == 0) num_experts = config.num_experts;
  ParameterCount count;
  std::map<int64_t, int64_t> of_layer;  // experts'
  for (const TensorSlot& slot : model.slots) {
    const Role role = slot.role();
    const bool predicts_ahead = config.family->has_mtp && slot.layer >= config.num_layers;
    if (role == Role::kSelectionBias || role == Role::kTiedCopy || predicts_ahead) continue;
    const io::TensorInfo info = model.info_of(slot.name);
    int64_t elements = config.is_quantised()            ? quantised_values(slot, info, config.quantised_bits)
                       : role == Role::kExpertCompanion ? 0
                                                        : info.elements();
    if (has_rows(role)) {
      const int64_t rows = config.rows_of(role);
      elements = elements / rows * (rows + num_experts - config.num_experts);
    } else if (is_expert(role) && slot.rule->layout.stacked) {
      elements = elements / config.num_experts * num_experts;
    } else if (is_expert(role) && slot.expert == 0) {  // new experts have the same size
      elements += elements * (num_experts - config.num_experts);
    }
    count.component(component_of(role)) += elements;
    count.total += elements;
    if (is_expert(role)) of_layer[slot.layer] += elements;
  }
  count.active = count.total;
  for (const auto& [layer, experts] : of_layer)
    count.active -= experts / num_experts * (num_experts - config.top_k_of(layer));
  return count;
}

}  // namespace coppice::families
