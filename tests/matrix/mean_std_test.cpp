#include "coppice/matrix/mean_std.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/growth_examples.h"

namespace coppice::matrix {
namespace {

TEST(MeanStd, IsThatOfThePopulation) {
  const std::vector<float> values{2, 4, 4, 4, 5, 5, 7, 9};
  const auto [mean, std] = mean_std(std::span<const float>(values));
  EXPECT_EQ(mean, 5);
  EXPECT_EQ(std, 2);
}

TEST(MeanStd, OfNothingIsZero) {
  const auto [mean, std] = mean_std(std::span<const float>());
  EXPECT_EQ(mean, 0);
  EXPECT_EQ(std, 0);
}

TEST(MeanStd, OfEqualNumbersIsExactly0) {
  for (const float x : {0.1f, -3e7f, 1e-30f}) {
    const std::vector<float> values(1001, x);
    EXPECT_EQ(mean_std(std::span<const float>(values)).std, 0) << x;
    EXPECT_EQ(mean_std(std::span<const float>(values)).mean, x);
  }
}

TEST(MeanStd, DoesNotDependOnThePieces) {
  const auto values = testing::normal_values(1000, 1, 2.0f, 0.5f);
  const auto whole = mean_std(std::span<const float>(values));
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{16}, size_t{37}}) {
    const auto found = mean_std<float>([&](auto add) {
      for (size_t i = 0; i < values.size(); i += piece) {
        add(std::span<const float>(values).subspan(i, std::min(piece, values.size() - i)));
      }
    });
    EXPECT_EQ(found.mean, whole.mean);
    EXPECT_EQ(found.std, whole.std);
  }
}

TEST(MeanStd, SurvivesALargeMean) {
  const std::vector<float> values{1e7f, 1e7f + 1, 1e7f + 2};
  EXPECT_NEAR(mean_std(std::span<const float>(values)).std, std::sqrt(2.0 / 3.0), 1e-9);
}

}  // namespace
}  // namespace coppice::matrix
