#include <iterator>

#include "coppice/base/check.h"
#include "coppice/families/family.h"

namespace coppice::families {

namespace {

enum class Kind : uint8_t { kMatrix, kNorm, kBias };

struct RoleRow {
  Role role;
  std::string_view name;
  Part part;
  Kind kind = Kind::kMatrix;
};

constexpr RoleRow kRoles[] = {
    {Role::kEmbedding, "embedding", Part::kEmbeddings},
    {Role::kLmHead, "lm_head", Part::kEmbeddings},
    {Role::kFinalNorm, "final_norm", Part::kNorms, Kind::kNorm},
    {Role::kInputNorm, "input_norm", Part::kNorms, Kind::kNorm},
    {Role::kPostAttentionNorm, "post_attention_norm", Part::kNorms, Kind::kNorm},
    {Role::kQuery, "query", Part::kAttention},
    {Role::kQueryBias, "query_bias", Part::kAttention, Kind::kBias},
    {Role::kKey, "key", Part::kAttention},
    {Role::kKeyBias, "key_bias", Part::kAttention, Kind::kBias},
    {Role::kValue, "value", Part::kAttention},
    {Role::kValueBias, "value_bias", Part::kAttention, Kind::kBias},
    {Role::kAttentionOutput, "attention_output", Part::kAttention},
    {Role::kAttentionOutputBias, "attention_output_bias", Part::kAttention, Kind::kBias},
    {Role::kQueryNorm, "query_norm", Part::kNorms, Kind::kNorm},
    {Role::kKeyNorm, "key_norm", Part::kNorms, Kind::kNorm},
    {Role::kDenseGate, "dense_gate", Part::kDense},
    {Role::kDenseUp, "dense_up", Part::kDense},
    {Role::kDenseDown, "dense_down", Part::kDense},
    {Role::kSharedGate, "shared_gate", Part::kShared},
    {Role::kSharedUp, "shared_up", Part::kShared},
    {Role::kSharedDown, "shared_down", Part::kShared},
    {Role::kSharedExpertGate, "shared_expert_gate", Part::kShared},
    {Role::kRouter, "router", Part::kRouters},
    {Role::kRouterBias, "router_bias", Part::kRouters, Kind::kBias},
    {Role::kSelectionBias, "selection_bias", Part::kRouters, Kind::kBias},
    {Role::kExpertGate, "expert_gate", Part::kExperts},
    {Role::kExpertUp, "expert_up", Part::kExperts},
    {Role::kExpertDown, "expert_down", Part::kExperts},
    {Role::kExpertShared, "expert", Part::kExperts},
    {Role::kDenseGateBias, "dense_gate_bias", Part::kDense, Kind::kBias},
    {Role::kDenseUpBias, "dense_up_bias", Part::kDense, Kind::kBias},
    {Role::kDenseDownBias, "dense_down_bias", Part::kDense, Kind::kBias},
    {Role::kExpertGateBias, "expert_gate_bias", Part::kExperts, Kind::kBias},
    {Role::kExpertUpBias, "expert_up_bias", Part::kExperts, Kind::kBias},
    {Role::kExpertDownBias, "expert_down_bias", Part::kExperts, Kind::kBias},
    {Role::kExpertGateUp, "expert_gate_up", Part::kExperts},
    {Role::kExpertGateUpBias, "expert_gate_up_bias", Part::kExperts, Kind::kBias},
    {Role::kExpertCompanion, "expert_companion", Part::kExperts},
    {Role::kExpertScale, "expert_scale", Part::kRouters},
    {Role::kAttentionExpert, "attention_expert", Part::kExperts},
    {Role::kAttentionRouter, "attention_router", Part::kRouters},
    {Role::kEmbeddings, "embeddings", Part::kEmbeddings},
    {Role::kAttention, "attention", Part::kAttention},
    {Role::kDense, "dense", Part::kDense},
    {Role::kShared, "shared", Part::kShared},
    {Role::kRouterTrunk, "router_trunk", Part::kRouters},
    {Role::kNorm, "norm", Part::kNorms, Kind::kNorm},
    {Role::kOther, "other", Part::kOther},
    {Role::kQueryDown, "query_down", Part::kAttention},
    {Role::kQueryDownBias, "query_down_bias", Part::kAttention, Kind::kBias},
    {Role::kQueryLatentNorm, "query_latent_norm", Part::kNorms, Kind::kNorm},
    {Role::kQueryUp, "query_up", Part::kAttention},
    {Role::kKeyValueDown, "key_value_down", Part::kAttention},
    {Role::kKeyValueDownBias, "key_value_down_bias", Part::kAttention, Kind::kBias},
    {Role::kKeyValueLatentNorm, "key_value_latent_norm", Part::kNorms, Kind::kNorm},
    {Role::kKeyValueUp, "key_value_up", Part::kAttention},
    {Role::kSinks, "sinks", Part::kAttention},
    {Role::kSharedGateUp, "shared_gate_up", Part::kShared},
    {Role::kQueryKeyValue, "query_key_value", Part::kAttention},
    {Role::kDenseGateUp, "dense_gate_up", Part::kDense},
    {Role::kTiedCopy, "tied_copy", Part::kEmbeddings},
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
Part part_of(Role role) { return row_of(role).part; }

bool is_expert(Role role) { return part_of(role) == Part::kExperts && role != Role::kExpertShared; }
bool is_router(Role role) { return role == Role::kRouter || role == Role::kRouterBias || role == Role::kSelectionBias; }
bool has_rows(Role role) { return part_of(role) == Part::kRouters && role != Role::kRouterTrunk; }

std::string_view part_name(Part part) {
  switch (part) {
    case Part::kEmbeddings: return "embeddings";
    case Part::kAttention: return "attention";
    case Part::kDense: return "dense";
    case Part::kShared: return "shared";
    case Part::kRouters: return "routers";
    case Part::kExperts: return "experts";
    case Part::kNorms: return "norms";
    case Part::kOther: return "other";
  }
  COPPICE_CHECK(false, "part ", static_cast<int>(part));
}

}  // namespace coppice::families
