#include "coppice/step/layer_metrics.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

namespace coppice::step {
namespace {

at::Tensor integers(std::vector<int64_t> values) { return at::tensor(values, at::kLong); }

TEST(LayerMaxViolation, IsTheLargestExcessAsAShareOfTheMean) {
  EXPECT_DOUBLE_EQ(max_violation(integers({4, 4, 4, 4})), 0.0);
  EXPECT_DOUBLE_EQ(max_violation(integers({16, 0, 0, 0})), 3.0);
  EXPECT_DOUBLE_EQ(max_violation(integers({0, 0})), 0.0);
}

TEST(LayerLoadEntropy, IsOneForEvenLoadAndZeroForOneExpert) {
  EXPECT_DOUBLE_EQ(load_entropy(integers({5, 5, 5, 5})), 1.0);
  EXPECT_DOUBLE_EQ(load_entropy(integers({0, 7, 0, 0})), 0.0);
  EXPECT_NEAR(load_entropy(integers({6, 6, 0, 0})), 0.5, 1e-12);
}

TEST(LayerDeadShare, CountsExpertsWithoutTokens) { EXPECT_DOUBLE_EQ(dead_share(integers({0, 1, 0, 9})), 0.5); }

TEST(LayerEffectiveTopK, CountsDifferentParents) {
  const std::vector<uint32_t> parents{0, 0, 1, 1, 2};
  EXPECT_DOUBLE_EQ(effective_top_k(integers({0, 1, 2, 4, 0, 2}).view({2, 3}), parents), 2.5);
  EXPECT_DOUBLE_EQ(effective_top_k(integers({0, 1, 2, 3}).view({2, 2}), parents), 1.0);
}

TEST(LayerRoutingOverlap, ComparesTheMixturesOfIds) {
  const std::vector<uint32_t> parents{0, 0, 1};
  // Tokens with ids 7, 7, 9, 9: expert 0 gets {7, 9}, its sibling 1 gets {7, 9}; expert 2 has no sibling.
  EXPECT_DOUBLE_EQ(*routing_overlap(integers({0, 1, 0, 1}).view({4, 1}), TokensById(integers({7, 7, 9, 9})), parents),
                   1.0);
  EXPECT_DOUBLE_EQ(*routing_overlap(integers({0, 0, 1, 1}).view({4, 1}), TokensById(integers({7, 7, 9, 9})), parents),
                   0.0);
  EXPECT_DOUBLE_EQ(*routing_overlap(integers({0, 0, 0, 1}).view({4, 1}), TokensById(integers({7, 9, 9, 9})), parents),
                   2.0 / 3.0);
  EXPECT_FALSE(
      routing_overlap(integers({0, 0, 2, 2}).view({4, 1}), TokensById(integers({7, 7, 9, 9})), parents).has_value());
}

TEST(LayerTokensById, AreSortedOnceForAllLayers) {
  std::vector<std::pair<int64_t, int64_t>> found;
  const TokensById by_id(integers({5, 2, 5, -1, 2}));
  for (const auto& [id, position] : by_id.tokens()) found.emplace_back(id, position);
  EXPECT_EQ(found, (std::vector<std::pair<int64_t, int64_t>>{{-1, 3}, {2, 1}, {2, 4}, {5, 0}, {5, 2}}));
}

TEST(LayerSiblingCosine, IsThatOfAllWeightsOfACopyAndItsParentsFirstChild) {
  const auto a = at::randn({6, 4}), b = at::randn({6, 4}), c = at::randn({4, 3});
  const auto fc1 = at::stack({a, a, b}), fc2 = at::stack({c, c, c});
  EXPECT_NEAR(sibling_cosine(fc1, fc2, std::vector<uint32_t>{0, 0, 1}).value(), 1.0, 1e-9);
  const auto dot = [](const at::Tensor& x, const at::Tensor& y) { return (x * y).sum().item<double>(); };
  const double expected = (dot(a, b) + dot(c, c)) / std::sqrt((dot(a, a) + dot(c, c)) * (dot(b, b) + dot(c, c)));
  EXPECT_NEAR(sibling_cosine(fc1, fc2, std::vector<uint32_t>{1, 0, 0}).value(), expected, 1e-6);
  EXPECT_FALSE(sibling_cosine(fc1, fc2, std::vector<uint32_t>{0, 1, 2})) << "no copies";
}

}  // namespace
}  // namespace coppice::step
