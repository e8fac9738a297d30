#include <iterator>

#include "coppice/base/check.h"
#include "coppice/families/family.h"

namespace coppice::families {

namespace {

enum class Kind : uint8_t { kMatrix, kNorm, kBias };

struct RoleRow {
  Role role;
  std::string_view name;
  Component component;
  Kind kind = Kind::kMatrix;
};

constexpr RoleRow kRoles[] = {
    {Role::kEmbedding, "embedding", Component::kEmbeddings},
    {Role::kLmHead, "lm_head", Component::kEmbeddings},
    {Role::kFinalNorm, "final_norm", Component::kNorms, Kind::kNorm},
    {Role::kInputNorm, "input_norm", Component::kNorms, Kind::kNorm},
    {Role::kPostAttentionNorm, "post_attention_norm", Component::kNorms, Kind::kNorm},
    {Role::kQuery, "query", Component::kAttention},
    {Role::kQueryBias, "query_bias", Component::kAttention, Kind::kBias},
    {Role::kKey, "key", Component::kAttention},
    {Role::kKeyBias, "key_bias", Component::kAttention, Kind::kBias},
    {Role::kValue, "value", Component::kAttention},
    {Role::kValueBias, "value_bias", Component::kAttention, Kind::kBias},
    {Role::kAttentionOutput, "attention_output", Component::kAttention},
    {Role::kAttentionOutputBias, "attention_output_bias", Component::kAttention, Kind::kBias},
    {Role::kQueryNorm, "query_norm", Component::kNorms, Kind::kNorm},
    {Role::kKeyNorm, "key_norm", Component::kNorms, Kind::kNorm},
    {Role::kDenseGate, "dense_gate", Component::kDense},
    {Role::kDenseUp, "dense_up", Component::kDense},
    {Role::kDenseDown, "dense_down", Component::kDense},
    {Role::kSharedGate, "shared_gate", Component::kShared},
    {Role::kSharedUp, "shared_up", Component::kShared},
    {Role::kSharedDown, "shared_down", Component::kShared},
    {Role::kSharedExpertGate, "shared_expert_gate", Component::kShared},
    {Role::kRouter, "router", Component::kRouters},
    {Role::kRouterBias, "router_bias", Component::kRouters, Kind::kBias},
    {Role::kSelectionBias, "selection_bias", Component::kRouters, Kind::kBias},
    {Role::kExpertGate, "expert_gate", Component::kExperts},
    {Role::kExpertUp, "expert_up", Component::kExperts},
    {Role::kExpertDown, "expert_down", Component::kExperts},
    {Role::kExpertShared, "expert", Component::kExperts},
    {Role::kDenseGateBias, "dense_gate_bias", Component::kDense, Kind::kBias},
    {Role::kDenseUpBias, "dense_up_bias", Component::kDense, Kind::kBias},
    {Role::kDenseDownBias, "dense_down_bias", Component::kDense, Kind::kBias},
    {Role::kExpertGateBias, "expert_gate_bias", Component::kExperts, Kind::kBias},
    {Role::kExpertUpBias, "expert_up_bias", Component::kExperts, Kind::kBias},
    {Role::kExpertDownBias, "expert_down_bias", Component::kExperts, Kind::kBias},
    {Role::kExpertGateUp, "expert_gate_up", Component::kExperts},
    {Role::kExpertGateUpBias, "expert_gate_up_bias", Component::kExperts, Kind::kBias},
    {Role::kExpertCompanion, "expert_companion", Component::kExperts},
    {Role::kExpertScale, "expert_scale", Component::kRouters},
    {Role::kAttentionExpert, "attention_expert", Component::kExperts},
    {Role::kAttentionRouter, "attention_router", Component::kRouters},
    {Role::kEmbeddings, "embeddings", Component::kEmbeddings},
    {Role::kAttention, "attention", Component::kAttention},
    {Role::kDense, "dense", Component::kDense},
    {Role::kShared, "shared", Component::kShared},
    {Role::kRouterTrunk, "router_trunk", Component::kRouters},
    {Role::kNorm, "norm", Component::kNorms, Kind::kNorm},
    {Role::kOther, "other", Component::kOther},
    {Role::kQueryDown, "query_down", Component::kAttention},
    {Role::kQueryDownBias, "query_down_bias", Component::kAttention, Kind::kBias},
    {Role::kQueryLatentNorm, "query_latent_norm", Component::kNorms, Kind::kNorm},
    {Role::kQueryUp, "query_up", Component::kAttention},
    {Role::kKeyValueDown, "key_value_down", Component::kAttention},
    {Role::kKeyValueDownBias, "key_value_down_bias", Component::kAttention, Kind::kBias},
    {Role::kKeyValueLatentNorm, "key_value_latent_norm", Component::kNorms, Kind::kNorm},
    {Role::kKeyValueUp, "key_value_up", Component::kAttention},
    {Role::kSinks, "sinks", Component::kAttention},
    {Role::kSharedGateUp, "shared_gate_up", Component::kShared},
    {Role::kQueryKeyValue, "query_key_value", Component::kAttention},
    {Role::kDenseGateUp, "dense_gate_up", Component::kDense},
    {Role::kTiedCopy, "tied_copy", Component::kEmbeddings},
    {Role::kExpertOther, "expert_other", Component::kExperts},
    {Role::kExpertTable, "expert_table", Component::kRouters},
};
static_assert(std::size(kRoles) == kNumRoles);

const RoleRow& row_of(Role role) {
  const auto index = static_cast<size_t>(role);
  COPPICE_CHECK(index < std::size(kRoles) && kRoles[index].role == role, "role ", index);
  return kRoles[index];
}

}  // namespace

std::string_view role_name(Role role) { return row_of(role).name; }
bool is_norm(Role role) { return row_of(role).kind == Kind::kNorm; }
bool is_bias(Role role) { return row_of(role).kind == Kind::kBias; }
Component component_of(Role role) { return row_of(role).component; }

bool is_expert(Role role) { return component_of(role) == Component::kExperts && role != Role::kExpertShared; }
bool is_copied_whole(Role role) {
  return role == Role::kExpertOther || role == Role::kExpertCompanion || role == Role::kAttentionExpert;
}
bool is_router(Role role) { return role == Role::kRouter || role == Role::kRouterBias || role == Role::kSelectionBias; }
bool has_rows(Role role) {
  return component_of(role) == Component::kRouters && role != Role::kRouterTrunk && role != Role::kExpertTable;
}

std::string_view component_name(Component which) {
  switch (which) {
    case Component::kEmbeddings: return "embeddings";
    case Component::kAttention: return "attention";
    case Component::kDense: return "dense";
    case Component::kShared: return "shared";
    case Component::kRouters: return "routers";
    case Component::kExperts: return "experts";
    case Component::kNorms: return "norms";
    case Component::kOther: return "other";
  }
  COPPICE_CHECK(false, "component ", static_cast<int>(which));
}

}  // namespace coppice::families
