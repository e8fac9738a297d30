// The table of every family that coppice also trains, by the same claims.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "coppice/base/error.h"
#include "coppice/models/generate.h"
#include "tests/testing/tiny_models.h"

namespace coppice::families {
namespace {

using ::testing::HasSubstr;

class FamilyTable : public ::testing::TestWithParam<const Family*> {};

std::string family_name(const ::testing::TestParamInfo<const Family*>& info) {
  return std::string(info.param->model_type);
}

models::ModelSizes sizes_of(const Family& family) {
  models::ModelSizes sizes;
  sizes.family = family.model_type;
  sizes.shared_width = family.has_shared() ? 64 : 0;
  if (family.has_latent_attention) sizes.num_kv_heads = sizes.num_heads;
  return sizes;
}

TEST_P(FamilyTable, IsFoundByItsModelType) { EXPECT_EQ(&family_of(GetParam()->model_type), GetParam()); }

TEST_P(FamilyTable, HasOneRulePerNameAndPerRole) {
  std::set<std::string_view> names;
  std::set<Role> roles;
  for (const TensorRule& rule : GetParam()->tensors) {
    EXPECT_TRUE(names.insert(rule.name).second) << rule.name;
    EXPECT_TRUE(roles.insert(rule.role).second) << rule.name;
  }
}

TEST_P(FamilyTable, NamesLayerAndExpertWhereTheRoleNeedsThem) {
  for (const TensorRule& rule : GetParam()->tensors) {
    const bool outside = rule.role == Role::kEmbedding || rule.role == Role::kLmHead || rule.role == Role::kFinalNorm;
    EXPECT_EQ(rule.per_layer(), !outside) << rule.name;
    EXPECT_EQ(rule.per_expert() || rule.layout.stacked, is_expert(rule.role)) << rule.name;
    const bool is_vector = is_norm(rule.role) || is_bias(rule.role) || rule.role == Role::kSinks;
    EXPECT_EQ(rule.shape.size(), (is_vector ? 1u : 2u) + (rule.layout.stacked ? 1u : 0u)) << rule.name;
  }
}

TEST_P(FamilyTable, HasExpertsExactlyIfItsLayersDo) {
  const Family& family = *GetParam();
  EXPECT_EQ(family.has_role(Role::kRouter), family.has_moe());
  EXPECT_EQ(family.has_role(Role::kExpertDown), family.has_moe());
  EXPECT_EQ(!family.experts_keys.empty(), family.has_moe());
  EXPECT_EQ(family.has_role(Role::kSharedUp) || family.has_role(Role::kSharedGateUp), family.has_shared());
}

TEST_P(FamilyTable, ConfigurationReadsBackAsTheSizesItWasMadeFrom) {
  const models::ModelSizes sizes = sizes_of(*GetParam());
  const ModelConfig config = read_config(models::make_config(sizes, io::Dtype::kBf16), "made");
  EXPECT_EQ(config.num_layers, sizes.num_layers);
  EXPECT_EQ(config.model_dim, sizes.model_dim);
  EXPECT_EQ(config.vocab_size, sizes.vocab_size);
  EXPECT_EQ(config.num_kv_heads, sizes.num_kv_heads);
  EXPECT_EQ(config.head_dim, sizes.head_dim);
  EXPECT_EQ(config.max_positions, sizes.max_positions);
  EXPECT_EQ(config.dtype, "bfloat16");
  EXPECT_THAT(config.unsupported_in_nn, ::testing::IsEmpty());
  if (!GetParam()->has_moe()) {
    EXPECT_FALSE(config.is_moe());
    EXPECT_EQ(config.dense_width, sizes.dense_width);
    return;
  }
  EXPECT_EQ(config.num_experts, sizes.num_experts);
  EXPECT_EQ(config.top_k, sizes.top_k);
  EXPECT_EQ(config.expert_width, sizes.expert_width);
  EXPECT_EQ(config.shared_width, sizes.shared_width);
  EXPECT_EQ(config.routing.renormalise, GetParam()->renormalise.kind != Switch::Kind::kNo);
}

TEST_P(FamilyTable, CountsTheElementsOfTheTensorsItExpects) {
  const ModelConfig config = read_config(models::make_config(sizes_of(*GetParam()), io::Dtype::kF32), "made");
  int64_t total = 0, experts = 0;
  for (const TensorSlot& slot : expected_tensors(config)) {
    int64_t elements = 1;
    for (const int64_t size : slot.shape) elements *= size;
    if (slot.role() != Role::kSelectionBias) total += elements;
    if (is_expert(slot.role())) experts += elements;
  }
  const ParameterCount count = count_parameters(config);
  EXPECT_EQ(count.total, total);
  EXPECT_EQ(count.experts, experts);
  EXPECT_EQ(count.active, config.is_moe() ? total - experts / 2 : total);  // 2 of 4 experts
  int64_t sum = 0;
  for (const Component component : kComponents) sum += count.component(component);
  EXPECT_EQ(sum, total);
}

TEST_P(FamilyTable, NamesAgreeWithTheExpectedTensors) {
  const ModelConfig config = read_config(models::make_config(sizes_of(*GetParam()), io::Dtype::kF32), "made");
  for (const TensorSlot& slot : expected_tensors(config)) {
    EXPECT_EQ(tensor_name(config, slot.role(), slot.layer, slot.expert), slot.name);
  }
  EXPECT_EQ(tensor_name(config, Role::kAttentionRouter, 0), "");
}

INSTANTIATE_TEST_SUITE_P(All, FamilyTable, ::testing::ValuesIn(testing::trained_families()), family_name);

TEST(FamilyOf, NamesTheNearestAndWhatToDo) {
  try {
    (void)family_of("qwen3_mo");
    FAIL() << "an unknown family was found";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("did you mean 'qwen3_moe'"));
    EXPECT_THAT(error.what(), HasSubstr("coppice list families"));
  }
}

TEST(RoleName, DiffersForEveryRole) {
  std::set<std::string_view> names;
  for (size_t role = 0; role < kNumRoles; ++role) {
    EXPECT_TRUE(names.insert(role_name(static_cast<Role>(role))).second) << role;
  }
}

// Role numbers are in random-number keys: another number is another model from the same seed.
TEST(RoleNumber, StaysWhatItWas) {
  EXPECT_EQ(static_cast<int>(Role::kEmbedding), 0);
  EXPECT_EQ(static_cast<int>(Role::kSharedExpertGate), 21);
  EXPECT_EQ(static_cast<int>(Role::kRouter), 22);
  EXPECT_EQ(static_cast<int>(Role::kExpertGate), 25);
  EXPECT_EQ(static_cast<int>(Role::kExpertShared), 28);
  EXPECT_EQ(static_cast<int>(Role::kDenseDownBias), 31);
  EXPECT_EQ(static_cast<int>(Role::kExpertDownBias), 34);
  EXPECT_EQ(static_cast<int>(Role::kOther), 47);
  EXPECT_EQ(static_cast<int>(Role::kKeyValueUp), 55);
  EXPECT_EQ(static_cast<int>(Role::kDenseGateUp), 59);
}

}  // namespace
}  // namespace coppice::families
