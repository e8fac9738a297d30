// The experts and routers among the tensors of a model in transformers' memory.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/families/packed_layout.h"
#include "tests/testing/errors.h"

namespace coppice::families {
namespace {

using testing::expect_error;

ModelConfig mixtral() {
  return read_config(Json::parse(R"({"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 8,
    "intermediate_size": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
    "num_local_experts": 4, "num_experts_per_tok": 2})",
                                 "test"),
                     "test");
}

/// What a model in the layout of `family` has.
std::vector<io::TensorInfo> tensors_of(ModelConfig config, const Family& family) {
  config.family = &family;
  std::vector<io::TensorInfo> out;
  for (const TensorSlot& slot : expected_tensors(config)) {
    out.push_back({.name = slot.name, .dtype = io::Dtype::kF32, .shape = slot.shape});
  }
  return out;
}

std::map<Role, int> roles(const std::vector<TensorSlot>& slots) {
  std::map<Role, int> out;
  for (const TensorSlot& slot : slots) ++out[slot.role()];
  return out;
}

TEST(SlotsInMemory, ArePackedWhereTheModelPacksThem) {
  const ModelConfig config = mixtral();
  const auto slots = slots_in_memory(config, tensors_of(config, *packed_layout(*config.family)));
  EXPECT_EQ(roles(slots), (std::map<Role, int>{{Role::kRouter, 2}, {Role::kExpertGateUp, 2}, {Role::kExpertDown, 2}}));
  for (const TensorSlot& slot : slots) EXPECT_EQ(slot.rule->layout.stacked, slot.role() != Role::kRouter) << slot.name;
}

TEST(SlotsInMemory, AreSingleWhereTheModelHasAModuleForEachExpert) {
  const ModelConfig config = mixtral();
  const auto slots = slots_in_memory(config, tensors_of(config, *config.family));
  EXPECT_EQ(
      roles(slots),
      (std::map<Role, int>{{Role::kRouter, 2}, {Role::kExpertGate, 8}, {Role::kExpertUp, 8}, {Role::kExpertDown, 8}}));
}

TEST(SlotsInMemory, RefuseModelsThatDoNotFitTheirConfiguration) {
  const ModelConfig config = mixtral();
  auto tensors = tensors_of(config, *packed_layout(*config.family));
  auto lacking = tensors;
  std::erase_if(lacking, [](const io::TensorInfo& info) { return info.name == "model.layers.1.mlp.gate.weight"; });
  expect_error(ErrorCode::kFormat, {"mixtral", "1 missing", "layers.1.mlp.gate.weight"},
               [&] { slots_in_memory(config, lacking); });
  for (io::TensorInfo& info : tensors) {
    if (info.name == "model.layers.0.mlp.gate.weight") info.shape = {5, 8};
  }
  expect_error(ErrorCode::kShape, {"layers.0.mlp.gate.weight is [5, 8]"}, [&] { slots_in_memory(config, tensors); });
  expect_error(ErrorCode::kFormat, {"no tensor that is named like those of experts"},
               [&] { slots_in_memory(config, {}); });
}

}  // namespace
}  // namespace coppice::families
