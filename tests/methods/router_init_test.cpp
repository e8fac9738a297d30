#include "coppice/methods/router_init.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "coppice/matrix/mean_std.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::methods {
namespace {

using testing::normal_values;

/// A router tensor [E, cols] and what a method makes of it.
struct Grown {
  LayerPlan layer;
  int64_t cols;
  std::vector<float> source, parents, values;

  std::span<const float> row(size_t child) const {
    return std::span(values).subspan(child * static_cast<size_t>(cols), static_cast<size_t>(cols));
  }
  /// values - parents' values, of the copies or of the originals.
  std::vector<float> changes(bool of_copies) const {
    std::vector<float> out;
    for (size_t i = 0; i < values.size(); ++i) {
      const Child& child = layer.children[i / static_cast<size_t>(cols)];
      if ((child.copy > 0) == of_copies) out.push_back(values[i] - parents[i]);
    }
    return out;
  }
};

Grown grow(std::string_view name, RouterTensor part, const LayerPlan& layer, int64_t cols, std::vector<float> source,
           const std::map<std::string, double>& given = {}, bool has_router_bias = false, uint64_t seed = 3) {
  Grown g{layer, cols, std::move(source), {}, {}};
  for (const Child& child : layer.children) {
    const auto row = std::span(g.source).subspan(child.parent * static_cast<size_t>(cols), static_cast<size_t>(cols));
    g.parents.insert(g.parents.end(), row.begin(), row.end());
  }
  g.values = g.parents;
  const RouterInit& method = router_init(name);
  method.apply(
      {.rows = static_cast<int64_t>(layer.children.size()), .cols = cols, .values = g.values, .source = g.source}, part,
      layer, seed, Params(name, method.params, given), has_router_bias);
  return g;
}

LayerPlan doubled(int64_t experts) { return testing::example_plan(experts, 2, {"copy", {}}).layers[0]; }

matrix::MeanStd stats(const std::vector<float>& values) { return matrix::mean_std(std::span<const float>(values)); }

// -- what holds for every method ----------------------------------------------

class RouterInits : public ::testing::TestWithParam<const RouterInit*> {};
INSTANTIATE_TEST_SUITE_P(All, RouterInits, ::testing::ValuesIn(testing::rows_of(router_inits())), testing::RowName());

TEST_P(RouterInits, LeaveTheOriginalsAlone) {
  for (const auto part : {RouterTensor::kWeight, RouterTensor::kBias, RouterTensor::kSelectionBias}) {
    const int64_t cols = part == RouterTensor::kWeight ? 6 : 1;
    const auto g = grow(GetParam()->name, part, doubled(8), cols, normal_values(static_cast<size_t>(8 * cols), 1));
    EXPECT_THAT(g.changes(false), ::testing::Each(0.0f));
  }
}

TEST_P(RouterInits, KeepWeightRowsWhereTheySaySo) {
  const auto g = grow(GetParam()->name, RouterTensor::kWeight, doubled(8), 6, normal_values(48, 1));
  EXPECT_EQ(g.values == g.parents, GetParam()->same_rows);
}

TEST_P(RouterInits, ChangeBiasesOnlyWhereTheyNeedThem) {
  for (const bool has_router_bias : {false, true}) {
    const auto router =
        grow(GetParam()->name, RouterTensor::kBias, doubled(8), 1, normal_values(8, 1), {}, has_router_bias);
    const auto selection =
        grow(GetParam()->name, RouterTensor::kSelectionBias, doubled(8), 1, normal_values(8, 1), {}, has_router_bias);
    EXPECT_EQ(router.values != router.parents, GetParam()->needs_bias && has_router_bias);
    EXPECT_EQ(selection.values != selection.parents, GetParam()->needs_bias && !has_router_bias);
  }
}

TEST_P(RouterInits, DoNotDependOnTheOrderOfChildren) {
  LayerPlan append = doubled(5);
  append.children.push_back({1, 2});
  append.children.push_back({4, 2});
  LayerPlan shuffled = append;
  std::ranges::sort(shuffled.children, {}, [](const Child& c) { return std::pair(c.parent, c.copy); });
  for (const auto part : {RouterTensor::kWeight, RouterTensor::kSelectionBias}) {
    const int64_t cols = part == RouterTensor::kWeight ? 7 : 1;
    const auto source = normal_values(static_cast<size_t>(5 * cols), 2);
    const auto a = grow(GetParam()->name, part, append, cols, source);
    const auto b = grow(GetParam()->name, part, shuffled, cols, source);
    for (size_t i = 0; i < append.children.size(); ++i) {
      const auto at =
          static_cast<size_t>(std::ranges::find(shuffled.children, append.children[i]) - shuffled.children.begin());
      EXPECT_THAT(a.row(i), ::testing::ElementsAreArray(b.row(at)));
    }
  }
}

TEST_P(RouterInits, DependOnTheSeed) {
  const auto part = GetParam()->needs_bias ? RouterTensor::kSelectionBias : RouterTensor::kWeight;
  const int64_t cols = GetParam()->needs_bias ? 1 : 6;
  const auto source = normal_values(static_cast<size_t>(8 * cols), 2);
  const auto a = grow(GetParam()->name, part, doubled(8), cols, source, {}, false, 1);
  const auto b = grow(GetParam()->name, part, doubled(8), cols, source, {}, false, 2);
  EXPECT_EQ(a.values == b.values, !GetParam()->draws);
}

// An uneven plan: expert 1 has three copies, expert 4 one, the others none.
TEST_P(RouterInits, TakeAnyPlan) {
  const LayerPlan layer{.layer = 0,
                        .children = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {1, 1}, {4, 1}, {1, 2}, {1, 3}}};
  const auto g = grow(GetParam()->name, RouterTensor::kWeight, layer, 6, normal_values(30, 2));
  EXPECT_THAT(g.changes(false), ::testing::Each(0.0f));
  for (size_t copy = 5; copy < 9; ++copy) {
    const auto parent = std::span(g.parents).subspan(copy * 6, 6);
    EXPECT_EQ(std::ranges::equal(g.row(copy), parent), GetParam()->same_rows);
    for (const float x : g.row(copy)) EXPECT_TRUE(std::isfinite(x));
  }
  EXPECT_EQ(std::ranges::equal(g.row(5), g.row(7)), !GetParam()->draws || GetParam()->same_rows);
}

// -- rows ---------------------------------------------------------------------

TEST(RouterCopyNoise, ScalesItsNoiseToTheWholeRouter) {
  const auto source = normal_values(64 * 512, 3, 0.05f);
  const auto g = grow("copy_noise", RouterTensor::kWeight, doubled(64), 512, source, {{"lambda", 0.1}});
  const auto [mean, std] = stats(g.changes(true));
  const double wanted = 0.1 * stats(source).std;
  EXPECT_NEAR(std, wanted, 0.02 * wanted);
  EXPECT_NEAR(mean, 0, 0.03 * wanted);
}

// Only expert 1 is duplicated, and its row is a hundred times the other's: the noise follows the new rows alone.
TEST(RouterPerturbNewOnly, ScalesItsNoiseToTheNewRows) {
  constexpr int64_t kCols = 20000;
  auto source = normal_values(2 * kCols, 4);
  for (size_t i = kCols; i < source.size(); ++i) source[i] *= 100;
  const LayerPlan layer{.layer = 0, .children = {{0, 0}, {1, 0}, {1, 1}, {1, 2}}};
  const auto g = grow("perturb_new_only", RouterTensor::kWeight, layer, kCols, source);
  const auto changes = g.changes(true);
  const double wanted = 0.02 * stats({source.begin() + kCols, source.end()}).std;
  EXPECT_NEAR(stats(changes).std, wanted, 0.02 * wanted);
  EXPECT_NE(std::vector(changes.begin(), changes.begin() + kCols), std::vector(changes.begin() + kCols, changes.end()));
}

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

TEST(RouterInterpolate, MixesWithTheNextRowAroundTheEndOrNot) {
  const std::vector<float> source{1, 2, 30, 40, 500, 600};
  const auto circular = grow("interpolate", RouterTensor::kWeight, doubled(3), 2, source);
  EXPECT_THAT(circular.row(3), ::testing::ElementsAre(15.5f, 21));
  EXPECT_THAT(circular.row(5), ::testing::ElementsAre(250.5f, 301));
  const auto clamped = grow("interpolate", RouterTensor::kWeight, doubled(3), 2, source, {{"clamped", 1}});
  EXPECT_THAT(clamped.row(3), ::testing::ElementsAre(15.5f, 21));
  EXPECT_THAT(clamped.row(5), ::testing::ElementsAre(500, 600));
}

TEST(RouterScaledCopies, HaveTheirFactors) {
  const std::vector<float> source{1, -2};
  EXPECT_THAT(grow("scaled_copy", RouterTensor::kWeight, doubled(1), 2, source).row(1),
              ::testing::ElementsAre(0.95f, -1.9f));
  EXPECT_THAT(grow("temperature_scaled", RouterTensor::kWeight, doubled(1), 2, source).row(1),
              ::testing::ElementsAre(0.9f, -1.8f));
}

TEST(RouterAdversarial, MovesATenthOfTheWayToTheMeanRow) {
  const auto g = grow("adversarial", RouterTensor::kWeight, doubled(2), 2, {1, 10, 3, 30});  // mean row 2, 20
  EXPECT_THAT(g.row(2), ::testing::ElementsAre(1.1f, 11));
  EXPECT_THAT(g.row(3), ::testing::ElementsAre(2.9f, 29));
}

TEST(RouterOrthogonal, IsOrthogonalToItsParentAndAsLong) {
  const auto source = normal_values(8 * 512, 3, 0.05f);
  const auto g = grow("orthogonal", RouterTensor::kWeight, doubled(8), 512, source);
  for (size_t e = 0; e < 8; ++e) {
    const auto parent = g.row(e), child = g.row(8 + e);
    EXPECT_NEAR(dot(parent, child) / dot(parent, parent), 0, 1e-6);
    EXPECT_NEAR(dot(child, child) / dot(parent, parent), 1, 1e-6);
    if (e > 0) {
      EXPECT_LT(std::abs(dot(child, g.row(7 + e))) / dot(child, child), 0.25);  // each its own direction
    }
  }
}

TEST(RouterOrthogonal, KeepsARowThatHasNoOtherDirection) {
  EXPECT_THAT(grow("orthogonal", RouterTensor::kWeight, doubled(2), 1, {3, 4}).changes(true), ::testing::Each(0.0f));
  EXPECT_THAT(grow("orthogonal", RouterTensor::kWeight, doubled(2), 2, {0, 0, 3, 4}).row(2), ::testing::Each(0.0f));
}

TEST(RouterSvdPerturb, TakesItsRowOfOnePerturbedMatrixPerCopyNumber) {
  const auto source = normal_values(16 * 64, 3, 0.05f);
  const auto g = grow("svd_perturb", RouterTensor::kWeight, doubled(16), 64, source);
  const std::span<const float> before(g.source), after = std::span(g.values).subspan(16 * 64);
  EXPECT_GT(dot(before, after) / std::sqrt(dot(before, before) * dot(after, after)), 0.97);
  EXPECT_NEAR(std::sqrt(dot(after, after) / dot(before, before)), 1.02, 0.06);
  // A plan with some of the children has the same rows for them.
  const LayerPlan some{.layer = 5, .children = {{3, 0}, {3, 1}, {9, 1}}};
  const auto part = grow("svd_perturb", RouterTensor::kWeight, some, 64, source);
  EXPECT_TRUE(std::ranges::equal(part.row(1), g.row(16 + 3)));
  EXPECT_TRUE(std::ranges::equal(part.row(2), g.row(16 + 9)));
}

// -- biases -------------------------------------------------------------------

TEST(RouterBiasOnly, AddsUniformNoiseWithinDelta) {
  const std::vector<float> source(5000, 0.0f);
  const auto g = grow("bias_only", RouterTensor::kSelectionBias, doubled(5000), 1, source);
  const auto changes = g.changes(true);
  for (const float x : changes) EXPECT_LE(std::abs(x), 1e-3f);
  const auto [mean, std] = stats(changes);
  EXPECT_NEAR(mean, 0, 5 * 1e-3 / std::sqrt(3 * 5000.0));
  EXPECT_NEAR(std, 1e-3 / std::sqrt(3.0), 2e-5);
}

TEST(RouterBiasOnly, AddsGaussianNoiseOfATenthOfTheBiasesStd) {
  const auto source = normal_values(5000, 5, 2.0f);
  const auto g = grow("bias_only", RouterTensor::kSelectionBias, doubled(5000), 1, source, {{"gaussian", 1}});
  EXPECT_NEAR(stats(g.changes(true)).std, 0.2, 0.01);
}

TEST(RouterBiasOnly, GaussianNoiseOfEqualBiasesHasStdDelta) {
  const std::vector<float> source(5000, 0.0f);
  const auto g =
      grow("bias_only", RouterTensor::kSelectionBias, doubled(5000), 1, source, {{"gaussian", 1}, {"delta", 0.5}});
  EXPECT_NEAR(stats(g.changes(true)).std, 0.5, 0.025);
}

TEST(RouterBiasOnly, ShiftsNewExpertsOnly) {
  const std::vector<float> source(100, 1.0f);
  const auto g = grow("bias_only", RouterTensor::kSelectionBias, doubled(100), 1, source,
                      {{"shift", -4}, {"noise_to_original", 1}});
  EXPECT_NEAR(stats(g.changes(true)).mean, -4, 1e-3);
  EXPECT_NEAR(stats(g.changes(false)).mean, 0, 1e-3);
}

TEST(RouterBiasOnly, PerturbsOriginalsByAnIndependentDraw) {
  const std::vector<float> source(2000, 0.0f);
  const auto g = grow("bias_only", RouterTensor::kSelectionBias, doubled(2000), 1, source, {{"noise_to_original", 1}});
  const auto of_copies = g.changes(true), of_originals = g.changes(false);
  double product = 0;
  for (size_t i = 0; i < of_copies.size(); ++i) product += double{of_copies[i]} * of_originals[i];
  EXPECT_LT(std::abs(product / 2000 / (1e-6 / 3)), 5 / std::sqrt(2000.0));  // correlation
  EXPECT_GT(stats(of_originals).std, 5e-4);
}

// A bias of 2^20 has neighbours 0.125 apart: a noise of 1e-3 is lost in fp32 addition and becomes one step instead.
TEST(RouterBiasOnly, NoiseBelowTheResolutionOfABiasMovesItOneStep) {
  const std::vector<float> source(64, 0x1p20f);
  const auto g = grow("bias_only", RouterTensor::kSelectionBias, doubled(64), 1, source);
  int up = 0;
  for (const float x : g.changes(true)) {
    EXPECT_TRUE(x == 0.125f || x == -0.0625f) << x;  // below a power of two the step is half as long
    up += x > 0;
  }
  EXPECT_GT(up, 16);
  EXPECT_LT(up, 48);
}

TEST(RouterInitByName, NamesTheNearest) {
  testing::expect_error(ErrorCode::kUsage, {"router-init", "'bias_onyl'", "'bias_only'"},
                        [] { (void)router_init("bias_onyl"); });
}

}  // namespace
}  // namespace coppice::methods
