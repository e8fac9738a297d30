#include "coppice/score/spherical_k_means.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/guarded/devices.h"

namespace coppice::score {
namespace {

/// `count` rows around each of the first `directions` axes of `dim`, of very different lengths.
at::Tensor bundles(int64_t directions, int64_t count, int64_t dim, double spread = 0.05) {
  std::vector<at::Tensor> parts;
  for (int64_t d = 0; d < directions; ++d) {
    auto part = at::randn({count + d, dim}) * spread;
    part.select(1, d) += 1;
    parts.push_back(part * static_cast<double>(1 + 10 * d));
  }
  return at::cat(parts);
}

TEST(SphericalKMeans, FindsWellSeparatedDirections) {
  at::manual_seed(1);
  const auto x_TD = bundles(4, 50, 12);
  const auto found = spherical_k_means(x_TD, {.clusters = 4, .seed = 3});
  auto sizes = found.sizes;
  std::ranges::sort(sizes);
  EXPECT_EQ(sizes, (std::vector<int64_t>{50, 51, 52, 53}));
  EXPECT_GT(found.cosine, 0.95);
  const auto of_axes_GG = found.centre_GD.narrow(1, 0, 4).abs();
  EXPECT_TRUE((std::get<0>(of_axes_GG.max(0)) > 0.95).all().item<bool>()) << "every axis has a centre";
}

TEST(SphericalKMeans, GivesCentresOfLengthOneAndCountsEveryRow) {
  at::manual_seed(2);
  const auto x_TD = at::randn({300, 8});
  const auto found = spherical_k_means(x_TD, {.clusters = 7, .seed = 1});
  EXPECT_TRUE(found.centre_GD.square().sum(1).sub(1).abs().lt(1e-5).all().item<bool>());
  EXPECT_EQ(std::accumulate(found.sizes.begin(), found.sizes.end(), int64_t{0}), 300);
  for (const int64_t size : found.sizes) EXPECT_GT(size, 0);
}

TEST(SphericalKMeans, LeavesNoClusterEmptyWhereRowsAreAlike) {
  auto x_TD = at::zeros({10, 4});
  x_TD.select(1, 0) += 1;
  const auto found = spherical_k_means(x_TD, {.clusters = 3});
  for (const int64_t size : found.sizes) EXPECT_GT(size, 0);
  EXPECT_TRUE(found.centre_GD.isfinite().all().item<bool>());
}

TEST(SphericalKMeans, TakesRowsOfZeros) {
  const auto found = spherical_k_means(at::zeros({5, 4}), {.clusters = 2});
  EXPECT_TRUE(found.centre_GD.isfinite().all().item<bool>());
}

TEST(SphericalKMeans, IsTheSameAgainAndDependsOnTheSeed) {
  at::manual_seed(3);
  const auto x_TD = at::randn({500, 16});
  const auto once = spherical_k_means(x_TD, {.clusters = 5, .seed = 1});
  EXPECT_TRUE(once.centre_GD.equal(spherical_k_means(x_TD, {.clusters = 5, .seed = 1}).centre_GD));
  EXPECT_FALSE(once.centre_GD.equal(spherical_k_means(x_TD, {.clusters = 5, .seed = 2}).centre_GD));
  EXPECT_FALSE(once.centre_GD.equal(spherical_k_means(x_TD, {.clusters = 5, .seed = 1, .stream = 1}).centre_GD));
}

// Rows alike as well, so that empty clusters are filled.
TEST(SphericalKMeans, IsTheSameOnADevice) {
  at::manual_seed(5);
  const auto x_TD = at::cat({at::randn({400, 16}), at::ones({20, 16})});
  for (const int64_t clusters : {6, 60}) {
    const auto here = spherical_k_means(x_TD, {.clusters = clusters, .seed = 1});
    const auto there = spherical_k_means(x_TD.to(guarded::kGuarded), {.clusters = clusters, .seed = 1});
    EXPECT_EQ(there.centre_GD.device(), guarded::kGuarded);
    EXPECT_TRUE(there.centre_GD.to(at::kCPU).equal(here.centre_GD)) << "the same operators";
    EXPECT_EQ(there.sizes, here.sizes);
    EXPECT_EQ(there.cosine, here.cosine);
  }
}

TEST(SphericalKMeans, GetsNoWorseWithMoreSteps) {
  at::manual_seed(4);
  const auto x_TD = at::randn({800, 6});
  double before = -1;
  for (const int64_t steps : {1, 2, 4, 8, 16}) {
    const double cosine = spherical_k_means(x_TD, {.clusters = 6, .steps = steps, .seed = 5}).cosine;
    EXPECT_GE(cosine, before - 1e-6) << steps;
    before = cosine;
  }
}

}  // namespace
}  // namespace coppice::score
