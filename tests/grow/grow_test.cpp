#include "coppice/grow/grow.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "coppice/base/sha256.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::grow {
namespace {

using families::Role;
using io::Dtype;
using methods::Child;
using methods::Moment;
using plan::GrowthPlan;
using testing::example_plan;
using testing::normal_values;

constexpr int64_t kLayer = 5;  // of example_plan
constexpr Dtype kFloats[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16};

std::vector<std::byte> store(Dtype dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(io::dtype_bits(dtype)) / 8);
  io::from_f32(dtype, values, bytes);
  return bytes;
}

std::vector<float> load(Dtype dtype, const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() * 8 / static_cast<size_t>(io::dtype_bits(dtype)));
  io::to_f32(dtype, bytes, values);
  return values;
}

/// The same matrix of E experts, as stored.
struct Stack {
  Dtype dtype;
  int64_t rows, cols;
  std::vector<std::vector<std::byte>> experts;

  static Stack random(Dtype dtype, int64_t num_experts, int64_t rows, int64_t cols) {
    Stack stack{dtype, rows, cols, {}};
    for (int64_t e = 0; e < num_experts; ++e) {
      stack.experts.push_back(
          store(dtype, normal_values(static_cast<size_t>(rows * cols), static_cast<uint32_t>(100 + e), 0.02f)));
    }
    return stack;
  }
  matrix::MatrixSource source() const {
    return [this](uint32_t e) { return matrix::MatrixBytes{dtype, rows, cols, experts.at(e)}; };
  }
};

std::vector<std::byte> grow_one(const GrowthPlan& plan, const Child& child, Role role, const Stack& stack,
                                Dtype out_dtype) {
  std::vector<std::byte> out(static_cast<size_t>(stack.rows * stack.cols * io::dtype_bits(out_dtype) / 8));
  grow_expert(plan, kLayer, child, role, stack.source(), out_dtype, out);
  return out;
}

std::vector<float> grow_moment_of(const GrowthPlan& plan, const Child& child, Role role, const Stack& moments) {
  std::vector<float> out(static_cast<size_t>(moments.rows * moments.cols));
  grow_expert_moment(plan, kLayer, child, role, Moment::kFirst, moments.source(), moments.source(), out);
  return out;
}

// -- experts ------------------------------------------------------------------

class GrowExpert : public ::testing::TestWithParam<const methods::ExpertInit*> {
 protected:
  GrowthPlan plan_ = example_plan(4, 3, {std::string(GetParam()->name), {}});
};
INSTANTIATE_TEST_SUITE_P(All, GrowExpert, ::testing::ValuesIn(testing::rows_of(methods::expert_inits())),
                         testing::RowName());

TEST_P(GrowExpert, KeepsOriginalsByteForByte) {
  for (const Dtype dtype : kFloats) {
    const Stack stack = Stack::random(dtype, 4, 6, 10);
    for (uint32_t e = 0; e < 4; ++e) {
      EXPECT_TRUE(is_plain_copy(plan_, {e, 0}));
      EXPECT_EQ(grow_one(plan_, {e, 0}, Role::kExpertUp, stack, dtype), stack.experts[e]);
    }
  }
}

TEST_P(GrowExpert, CopiesAreTheirParentsBytesExactlyIfTheMethodSaysSo) {
  for (const Dtype dtype : kFloats) {
    const Stack stack = Stack::random(dtype, 4, 6, 10);
    const Child child{2, 1};
    EXPECT_EQ(is_plain_copy(plan_, child), GetParam()->same_bytes);
    EXPECT_EQ(grow_one(plan_, child, Role::kExpertUp, stack, dtype) == stack.experts[2], GetParam()->same_bytes);
  }
}

TEST_P(GrowExpert, ComputesInF32AndRoundsOnce) {
  const Stack master = Stack::random(Dtype::kF32, 4, 6, 10);
  for (const Dtype dtype : kFloats) {
    for (const Role role : {Role::kExpertGate, Role::kExpertDown}) {
      for (const Child& child : plan_.layers[0].children) {
        const auto exact = load(Dtype::kF32, grow_one(plan_, child, role, master, Dtype::kF32));
        EXPECT_EQ(grow_one(plan_, child, role, master, dtype), store(dtype, exact));
      }
    }
  }
}

TEST_P(GrowExpert, SiblingsDiffer) {
  const Stack stack = Stack::random(Dtype::kF32, 4, 6, 10);
  const auto first = grow_one(plan_, {1, 1}, Role::kExpertDown, stack, Dtype::kF32);
  const auto second = grow_one(plan_, {1, 2}, Role::kExpertDown, stack, Dtype::kF32);
  EXPECT_EQ(first == second, !GetParam()->draws);
}

// A bias is a matrix of one column; whatever the layout, gate's and up's have a row a unit.
TEST_P(GrowExpert, BiasesAreTheirParentsUnlessTheMethodChangesThem) {
  for (const Role role : {Role::kExpertGateBias, Role::kExpertUpBias}) {
    const Stack stack = Stack::random(Dtype::kBf16, 4, 40, 1);
    const Child child{2, 1};
    EXPECT_EQ(is_plain_copy(plan_, kLayer, child, role), !GetParam()->changes_biases);
    EXPECT_EQ(grow_one(plan_, child, role, stack, Dtype::kBf16) == stack.experts[2], !GetParam()->changes_biases);
    const auto moments = grow_moment_of(plan_, child, role, stack);
    if (!GetParam()->changes_biases) {
      EXPECT_EQ(moments, load(Dtype::kBf16, stack.experts[2]));
    }
  }
}

TEST(GrowExpertLayers, UseTheirOwnMethod) {
  auto plan = example_plan(4, 2, {"copy", {}}, {"copy", {}});
  const Stack stack = Stack::random(Dtype::kF32, 4, 6, 10);
  const auto noisy =
      grow_one(example_plan(4, 2, {"copy_noise", {{"lambda", 0.5}}}), {1, 1}, Role::kExpertUp, stack, Dtype::kF32);
  plan.layers[0].expert_init = methods::MethodChoice{"copy_noise", {{"lambda", 0.5}}};
  EXPECT_FALSE(is_plain_copy(plan, {1, 1}));
  EXPECT_EQ(grow_one(plan, {1, 1}, Role::kExpertUp, stack, Dtype::kF32), noisy);
  plan.expert_init = {"drop_units", {}};
  plan.layers[0].expert_init = methods::MethodChoice{"copy", {}};
  EXPECT_TRUE(is_plain_copy(plan, kLayer, {1, 1}, Role::kExpertUp));
  EXPECT_EQ(grow_one(plan, {1, 1}, Role::kExpertUp, stack, Dtype::kF32), stack.experts[1]);
}

TEST_P(GrowExpert, ASecondGrowthWithTheSameSeedDoesNotRepeatTheFirst) {
  Stack stack = Stack::random(Dtype::kF32, 4, 6, 10);
  const auto first = grow_one(example_plan(4, 2, plan_.expert_init), {1, 1}, Role::kExpertUp, stack, Dtype::kF32);
  for (int copies = 0; copies < 4; ++copies) stack.experts.push_back(stack.experts[static_cast<size_t>(copies)]);
  const auto second = grow_one(example_plan(8, 2, plan_.expert_init), {1, 1}, Role::kExpertUp, stack, Dtype::kF32);
  EXPECT_EQ(first == second, !GetParam()->draws);
}

TEST(GrowExpertDtypes, LowPrecisionIsCopiedButNotComputedOn) {
  const Stack stack{Dtype::kF8E4M3, 2, 3, {std::vector<std::byte>(6, std::byte{0x42})}};
  EXPECT_EQ(grow_one(example_plan(1, 2, {"copy", {}}), {0, 1}, Role::kExpertUp, stack, Dtype::kF8E4M3),
            stack.experts[0]);
  testing::expect_error(ErrorCode::kUnsupported, {"F8_E4M3", "copy"}, [&] {
    (void)grow_one(example_plan(1, 2, {"copy_noise", {}}), {0, 1}, Role::kExpertUp, stack, Dtype::kF8E4M3);
  });
}

// Recorded once: the bytes depend on no compiler, optimisation or processor. A change here changes everybody's grown
// models.
TEST(GrowExpertBytes, AreTheRecordedOnes) {
  std::vector<float> values(37 * 53);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 7919 % 1009) / 1009.0f - 0.5f;
  const Stack stack{Dtype::kF32, 37, 53, {store(Dtype::kF32, values)}};
  const auto digest = [&](const char* method, Role role) {
    Sha256 sha;
    sha.add(grow_one(example_plan(1, 2, {method, {}}), {0, 1}, role, stack, Dtype::kBf16));
    return sha.hex().substr(0, 16);
  };
  EXPECT_EQ(digest("copy_noise", Role::kExpertUp), "50398e866b2c0c1f");
  EXPECT_EQ(digest("drop_units", Role::kExpertDown), "a8dbdf271a1a58d6");
  EXPECT_EQ(digest("permute_units", Role::kExpertGate), "ad7f9a73181e8821");
}

// -- router -------------------------------------------------------------------

std::vector<std::byte> grow_rows(const GrowthPlan& plan, Role role, Dtype dtype, const std::vector<std::byte>& before,
                                 int64_t cols, bool has_router_bias = false) {
  std::vector<std::byte> out(before.size() * static_cast<size_t>(plan.experts_after / plan.experts_before));
  grow_router(plan, kLayer, role, {dtype, plan.experts_before, cols, before}, out, has_router_bias);
  return out;
}

class GrowRouter : public ::testing::TestWithParam<const methods::RouterInit*> {
 protected:
  GrowthPlan plan_ = example_plan(8, 2, {"copy", {}}, {std::string(GetParam()->name), {}});
};
INSTANTIATE_TEST_SUITE_P(All, GrowRouter, ::testing::ValuesIn(testing::rows_of(methods::router_inits())),
                         testing::RowName());

TEST_P(GrowRouter, KeepsOriginalsByteForByte) {
  for (const Dtype dtype : kFloats) {
    for (const Role role : {Role::kRouter, Role::kRouterBias, Role::kSelectionBias}) {
      const int64_t cols = role == Role::kRouter ? 16 : 1;
      const auto before = store(dtype, normal_values(static_cast<size_t>(8 * cols), 1));
      const auto after = grow_rows(plan_, role, dtype, before, cols, true);
      EXPECT_EQ(std::vector(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(before.size())), before);
    }
  }
}

// bf16 steps around 1 are 1/128: most noise of these methods would be rounded away, and siblings would tie.
TEST_P(GrowRouter, NoNoiseIsLostInRounding) {
  if (GetParam()->name == "orthogonal") GTEST_SKIP() << "one column has no orthogonal direction";
  if (!GetParam()->draws && !GetParam()->same_rows) GTEST_SKIP() << "no noise";
  const Role role = GetParam()->needs_bias ? Role::kSelectionBias : Role::kRouter;
  for (const Dtype dtype : kFloats) {
    const auto before = store(dtype, {1.0f, -1.0f, 3.0f, -3.0f, 100.0f, -100.0f, 0.5f, 0.0f});
    const auto values = load(dtype, grow_rows(plan_, role, dtype, before, 1));
    for (size_t i = 0; i < 8; ++i)
      EXPECT_EQ(values[8 + i] == values[i], GetParam()->only_copies()) << io::dtype_name(dtype) << " " << i;
  }
}

TEST_P(GrowRouter, WritesTheMethodsValuesRoundedOnce) {
  const auto master = normal_values(8 * 16, 1);
  const auto before = store(Dtype::kBf16, master);
  const auto in_f32 = load(
      Dtype::kF32, grow_rows(plan_, Role::kRouter, Dtype::kF32, store(Dtype::kF32, load(Dtype::kBf16, before)), 16));
  const auto in_bf16 = load(Dtype::kBf16, grow_rows(plan_, Role::kRouter, Dtype::kBf16, before, 16));
  const auto rounded = load(Dtype::kBf16, store(Dtype::kBf16, in_f32));
  const auto parents = load(Dtype::kBf16, before);
  for (size_t i = 0; i < in_bf16.size(); ++i) {
    const float parent = parents[i % parents.size()];
    if (in_f32[i] != parent && rounded[i] == parent) {
      EXPECT_EQ(in_bf16[i], io::next_representable(Dtype::kBf16, parent, in_f32[i] - parent));
    } else {
      EXPECT_EQ(in_bf16[i], rounded[i]);
    }
  }
}

TEST(GrowSelectionBias, OfNewExpertsIsTheirParentsOrZero) {
  auto plan = example_plan(3, 2, {"copy", {}});
  const auto before = store(Dtype::kF32, {1, 2, 3});
  EXPECT_THAT(load(Dtype::kF32, grow_rows(plan, Role::kSelectionBias, Dtype::kF32, before, 1)),
              ::testing::ElementsAre(1, 2, 3, 1, 2, 3));
  plan.balance_bias = "zero";
  EXPECT_THAT(load(Dtype::kF32, grow_rows(plan, Role::kSelectionBias, Dtype::kF32, before, 1)),
              ::testing::ElementsAre(1, 2, 3, 0, 0, 0));
  EXPECT_THAT(load(Dtype::kF32, grow_rows(plan, Role::kRouterBias, Dtype::kF32, before, 1, true)),
              ::testing::ElementsAre(1, 2, 3, 1, 2, 3));
}

// -- optimizer state ----------------------------------------------------------

std::vector<float> grow_moment(const GrowthPlan& plan, const Child& child, const Stack& moments, const Stack& weights,
                               Role role = Role::kExpertUp) {
  std::vector<float> out(static_cast<size_t>(moments.rows * moments.cols));
  grow_expert_moment(plan, kLayer, child, role, Moment::kFirst, moments.source(), weights.source(), out);
  return out;
}

class GrowMoments : public ::testing::TestWithParam<const methods::OptimizerInit*> {};
INSTANTIATE_TEST_SUITE_P(All, GrowMoments, ::testing::ValuesIn(testing::rows_of(methods::optimizer_inits())),
                         testing::RowName());

TEST_P(GrowMoments, OfOriginalsAreKeptWithTheirStep) {
  for (const methods::ExpertInit& method : methods::expert_inits()) {
    const auto plan =
        example_plan(4, 2, {std::string(method.name), {}}, {"copy", {}}, {std::string(GetParam()->name), {}});
    const Stack moments = Stack::random(Dtype::kF32, 4, 6, 5), weights = Stack::random(Dtype::kF32, 4, 6, 5);
    auto wanted = load(Dtype::kF32, moments.experts[1]);
    if (GetParam()->touches_original) {
      for (float& m : wanted) m *= 0.5f;  // share: two siblings
    }
    EXPECT_EQ(grow_moment(plan, {1, 0}, moments, weights), wanted);
    EXPECT_EQ(grow_step(plan, {1, 0}, 77), 77);
    EXPECT_EQ(grow_step(plan, {1, 1}, 77), GetParam()->keeps_step ? 77 : 0);
  }
}

TEST_P(GrowMoments, OfRouterRowsFollowTheStrategyRowByRow) {
  const auto plan = example_plan(3, 2, {"drop_units", {}}, {"copy_noise", {}}, {std::string(GetParam()->name), {}});
  const std::vector<float> before{1, 2, 3, 4, 5, 6};
  std::vector<float> out(12);
  grow_router_moment(plan, kLayer, Moment::kFirst, before, 2, out);
  const std::map<std::string_view, std::vector<float>> wanted{
      {"reset", {0, 0, 0, 0, 0, 0}},       {"copy", before},
      {"share", {0.5, 1, 1.5, 2, 2.5, 3}}, {"scale", {0.5, 1, 1.5, 2, 2.5, 3}},
      {"interpolate", {2, 3, 4, 5, 3, 4}},  // with rows 1, 2 and, around the end, 0
  };
  const auto& children = wanted.at(GetParam()->name);
  EXPECT_EQ(std::vector(out.begin(), out.begin() + 6), GetParam()->touches_original ? children : before);
  EXPECT_EQ(std::vector(out.begin() + 6, out.end()), children);
}

TEST_P(GrowMoments, OfRedrawnWeightsAreZero) {
  const auto plan = example_plan(4, 2, {"drop_units", {}}, {"copy", {}}, {std::string(GetParam()->name), {}});
  const Stack moments = Stack::random(Dtype::kF32, 4, 8, 5), weights = Stack::random(Dtype::kF32, 4, 8, 5);
  for (const Role role : {Role::kExpertGate, Role::kExpertDown}) {
    const auto child = load(Dtype::kF32, grow_one(plan, {3, 1}, role, weights, Dtype::kF32));
    const auto parent = load(Dtype::kF32, weights.experts[3]);
    const auto moment = grow_moment(plan, {3, 1}, moments, weights, role);
    for (size_t i = 0; i < child.size(); ++i) {
      const bool redrawn = child[i] != parent[i];
      EXPECT_EQ(moment[i] == 0.0f, redrawn || GetParam()->name == "reset") << i;
    }
  }
}

// Moments that equal the weights stay equal to them through a permutation.
TEST(GrowMomentsCopy, FollowThePermutationOfTheWeights) {
  const auto plan = example_plan(4, 2, {"permute_units", {}});
  const Stack weights = Stack::random(Dtype::kF32, 4, 8, 5);
  for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
    const auto child = load(Dtype::kF32, grow_one(plan, {2, 1}, role, weights, Dtype::kF32));
    EXPECT_EQ(grow_moment(plan, {2, 1}, weights, weights, role), child);
  }
}

TEST(GrowMomentsScale, UseTheChangeOfTheWeights) {
  const auto plan = example_plan(2, 2, {"copy_noise", {{"lambda", 0.5}}}, {"copy", {}}, {"scale", {}});
  const Stack weights = Stack::random(Dtype::kF32, 2, 8, 5);
  const Stack moments{Dtype::kF32,
                      8,
                      5,
                      {store(Dtype::kF32, std::vector<float>(40, 1)), store(Dtype::kF32, std::vector<float>(40, 1))}};
  const auto parent = load(Dtype::kF32, weights.experts[1]);
  const auto child = load(Dtype::kF32, grow_one(plan, {1, 1}, Role::kExpertUp, weights, Dtype::kF32));
  double change = 0, whole = 0;
  for (size_t i = 0; i < parent.size(); ++i) {
    change += std::abs(child[i] - parent[i]);
    whole += std::abs(parent[i]);
  }
  for (const float m : grow_moment(plan, {1, 1}, moments, weights)) EXPECT_NEAR(m, 0.5 * (1 - change / whole), 1e-6);
}

TEST(GrowMomentsInterpolate, MixWithTheNextExpertAroundTheEnd) {
  const auto plan = example_plan(3, 2, {"copy", {}}, {"copy", {}}, {"interpolate", {}});
  const Stack moments = Stack::random(Dtype::kF32, 3, 4, 4);
  const auto own = load(Dtype::kF32, moments.experts[2]), next = load(Dtype::kF32, moments.experts[0]);
  const auto mixed = grow_moment(plan, {2, 1}, moments, moments);
  for (size_t i = 0; i < mixed.size(); ++i) EXPECT_FLOAT_EQ(mixed[i], 0.5f * (own[i] + next[i]));
}

}  // namespace
}  // namespace coppice::grow
