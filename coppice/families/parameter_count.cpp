#include "coppice/base/check.h"
#include "coppice/families/match.h"

namespace coppice::families {

int64_t& ParameterCount::part(Part part) {
  switch (part) {
    case Part::kEmbeddings: return embeddings;
    case Part::kAttention: return attention;
    case Part::kDense: return dense;
    case Part::kShared: return shared;
    case Part::kRouters: return routers;
    case Part::kExperts: return experts;
    case Part::kNorms: return norms;
    case Part::kOther: return other;
  }
  COPPICE_CHECK(false, "part ", static_cast<int>(part));
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
    count.part(part_of(rule.role)) += elements;
    count.total += elements;
  }
  count.active = count.total;
  if (config.is_moe()) count.active -= count.experts / config.num_experts * (config.num_experts - config.top_k);
  return count;
}

ParameterCount count_parameters(const Model& model, int64_t num_experts) {
  const ModelConfig& config = model.config;
  if (num_experts == 0) num_experts = config.num_experts;
  ParameterCount count;
  for (const TensorSlot& slot : model.slots) {
    const Role role = slot.role();
    const bool predicts_ahead = config.family->has_mtp && slot.layer >= config.num_layers;
    if (role == Role::kSelectionBias || predicts_ahead) continue;
    int64_t elements = model.checkpoint.at(slot.name).info->elements();
    if (role == Role::kExpertCompanion) elements = slot.name.ends_with("_blocks") ? 2 * elements : 0;
    if (has_rows(role)) {
      const int64_t rows = config.router_rows();
      elements = elements / rows * (rows + num_experts - config.num_experts);
    } else if (is_expert(role) && slot.rule->layout.stacked) {
      elements = elements / config.num_experts * num_experts;
    } else if (is_expert(role) && slot.expert == 0) {  // the new ones are as large
      elements += elements * (num_experts - config.num_experts);
    }
    count.part(part_of(role)) += elements;
    count.total += elements;
  }
  count.active = count.total;
  if (config.is_moe()) count.active -= count.experts / num_experts * (num_experts - config.top_k);
  return count;
}

}  // namespace coppice::families
