// Parts of a model that the ranks of an expert group have.
#include "coppice/nn/division.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "coppice/nn/decoder.h"
#include "coppice/nn/parameter_builder.h"
#include "tests/nn/tiny_decoders.h"
#include "tests/testing/temp_dir.h"

namespace coppice::nn {
namespace {

using coppice::testing::TempDir;
using coppice::testing::tiny_model;
using families::Role;

Division division_of(const families::ModelConfig& config, int64_t ranks, int64_t rank) {
  Division out{.expert_rank = rank};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.moe_layer[layer]) out.placement[layer] = place_experts(config.num_experts, {}, ranks);
  }
  return out;
}

// Separate experts and stacks, fused and not, interleaved, transposed, with biases.
class DivisionOf : public ::testing::TestWithParam<std::string_view> {
 protected:
  families::Model model() {
    return families::open_model(
        tiny_model(dir_ / "m", GetParam(), {.sizes = sizes_of(GetParam()), .dtype = io::Dtype::kF32, .std = 0.2}));
  }

 private:
  TempDir dir_;
};

INSTANTIATE_TEST_SUITE_P(Families, DivisionOf,
                         ::testing::Values("mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe",
                                           "llama"),
                         [](const auto& param_info) { return std::string(param_info.param); });

TEST_P(DivisionOf, GivesARankTheMatricesOfItsExperts) {
  const auto source = model();
  const auto whole = Decoder::load(source, ComputeDtype::kF32);
  for (const int64_t ranks : {2, 4}) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const auto part = Decoder::load(source, ComputeDtype::kBf16, at::kCPU, division_of(source.config, ranks, rank));
      ASSERT_EQ(part.parameters().size(), whole.parameters().size());
      for (size_t i = 0; i < whole.parameters().size(); ++i) {
        const Parameter &all = whole.parameters()[i], &own = part.parameters()[i];
        ASSERT_EQ(own.role, all.role);
        ASSERT_EQ(own.layer, all.layer);
        EXPECT_EQ(own.value.scalar_type(), at::kBFloat16);
        if (!all.is_experts()) {
          EXPECT_TRUE(own.experts.empty());
          EXPECT_TRUE(at::equal(own.master, all.master));
          continue;
        }
        EXPECT_EQ(std::ssize(all.experts), source.config.num_experts);
        EXPECT_EQ(own.experts, place_experts(source.config.num_experts, {}, ranks).experts_of(rank));
        ASSERT_EQ(own.master.size(0), std::ssize(own.experts));
        for (size_t e = 0; e < own.experts.size(); ++e)
          EXPECT_TRUE(at::equal(own.master[static_cast<int64_t>(e)], all.master[own.experts[e]]));
      }
    }
  }
}

TEST_P(DivisionOf, NumbersTheMatricesOfARankAsTheModelDoes) {
  const auto source = model();
  const auto whole = Decoder::load(source, ComputeDtype::kF32);
  const auto part = Decoder::load(source, ComputeDtype::kF32, at::kCPU, division_of(source.config, 4, 1));
  for (size_t i = 0; i < whole.parameters().size(); ++i) {
    const Parameter &all = whole.parameters()[i], &own = part.parameters()[i];
    const auto all_matrices = all.expert_matrices();
    for (const auto& m : own.expert_matrices()) {
      const auto same = std::ranges::find_if(
          all_matrices, [&](const auto& other) { return other.role == m.role && other.expert == m.expert; });
      ASSERT_NE(same, all_matrices.end());
      const auto read = [&](const at::Tensor& t, int64_t begin) {
        return t.view({-1}).narrow(0, begin, m.rows * m.cols);
      };
      EXPECT_TRUE(at::equal(read(own.value, m.begin), read(all.value, same->begin)));
    }
  }
}

TEST_P(DivisionOf, VisitsEveryTensorOnOneRankOrInParts) {
  const auto source = model();
  std::map<std::string, int64_t> seen;  // elements of experts
  for (int64_t rank = 0; rank < 4; ++rank) {
    const auto part = Decoder::load(source, ComputeDtype::kF32, at::kCPU, division_of(source.config, 4, rank));
    part.visit([&](const families::TensorSlot& slot, std::span<const float> values) {
      const auto stored = source.checkpoint.read_f32(slot.name);
      std::span<const float> wanted = stored;
      if (families::is_expert(slot.role())) {
        seen[slot.name] += std::ssize(values);
        if (slot.rule->layout.stacked) wanted = part_of(slot, wanted, source.config.num_experts);
      }
      EXPECT_TRUE(std::ranges::equal(values, wanted)) << slot.name;
    });
  }
  for (const auto& slot : families::expected_tensors(source.config)) {
    if (!families::is_expert(slot.role())) continue;
    EXPECT_EQ(seen[slot.name], std::ssize(source.checkpoint.read_f32(slot.name))) << slot.name;
  }
}

TEST_P(DivisionOf, BuildsOneParameterAsTheDecoderHasIt) {
  const auto source = model();
  const auto division = division_of(source.config, 2, 1);
  const auto part = Decoder::load(source, ComputeDtype::kF32, at::kCPU, division);
  const ParameterBuilder builder(source.config, ComputeDtype::kF32, at::kCPU, division);
  for (const Parameter& p : part.parameters()) {
    const auto built = builder.build(p.role, p.layer, [&](const families::TensorSlot& slot, std::span<float> values) {
      const auto stored = source.checkpoint.read_f32(slot.name);
      std::span<const float> wanted = stored;
      if (slot.expert >= 0 && slot.rule->layout.stacked) wanted = part_of(slot, wanted, source.config.num_experts);
      std::ranges::copy(wanted, values.begin());
    });
    EXPECT_EQ(built.experts, p.experts);
    EXPECT_TRUE(at::equal(built.master, p.master));
  }
}

TEST_P(DivisionOf, SaysBeforeItReadsTheParametersOfALayer) {
  auto source = model();
  const auto decoder = Decoder::load(source, ComputeDtype::kF32);
  const auto tokens = at::zeros({1, 4}, at::kLong);
  const auto wanted = decoder.logits(tokens, {});
  // Values that are there only when the layer is announced.
  auto late = Decoder::load(source, ComputeDtype::kF32);
  const at::NoGradGuard no_grad;
  for (auto& p : late.parameters()) p.value.zero_();
  std::vector<int64_t> called;
  const ForwardOptions options{.before_layer = [&](int64_t layer) {
    called.push_back(layer);
    for (size_t i = 0; i < late.parameters().size(); ++i) {
      auto& p = late.parameters()[i];
      const bool outer = p.role == Role::kFinalNorm || p.role == Role::kLmHead;
      const int64_t first_read = p.layer >= 0 ? p.layer : outer ? source.config.num_layers : -1;
      if (first_read == layer) p.value.copy_(decoder.parameters()[i].value);
    }
  }};
  EXPECT_TRUE(at::equal(late.logits(tokens, options), wanted));
  EXPECT_THAT(called, ::testing::ElementsAre(-1, 0, 1, 2, 3));
}

}  // namespace
}  // namespace coppice::nn
