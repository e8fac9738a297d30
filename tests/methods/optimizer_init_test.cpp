#include "coppice/methods/optimizer_init.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::methods {
namespace {

using ::testing::ElementsAre;

std::vector<float> apply(std::string_view name, std::vector<float> moment, const MomentContext& context,
                         const std::map<std::string, double>& given = {}) {
  const OptimizerInit& strategy = optimizer_init(name);
  strategy.apply(moment, context, Params(name, strategy.params, given));
  return moment;
}

TEST(OptimizerReset, ZeroesMomentsAndStep) {
  EXPECT_THAT(apply("reset", {1, -2}, {}), ElementsAre(0, 0));
  EXPECT_FALSE(optimizer_init("reset").keeps_step);
}

TEST(OptimizerCopy, KeepsMomentsAndStep) {
  EXPECT_THAT(apply("copy", {1, -2}, {}), ElementsAre(1, -2));
  EXPECT_TRUE(optimizer_init("copy").keeps_step);
}

TEST(OptimizerShare, DividesTheMomentsAmongAllSiblings) {
  EXPECT_THAT(apply("share", {6, -2}, {.moment = Moment::kFirst, .num_siblings = 2}), ElementsAre(3, -1));
  EXPECT_THAT(apply("share", {8, 4}, {.moment = Moment::kSecond, .num_siblings = 2}), ElementsAre(2, 1));
  EXPECT_THAT(apply("share", {9}, {.moment = Moment::kSecond, .num_siblings = 3}, {{"power", 1}}), ElementsAre(3));
  EXPECT_THAT(apply("share", {9}, {.moment = Moment::kSecond, .num_siblings = 1}), ElementsAre(9));
  EXPECT_TRUE(optimizer_init("share").touches_original);
  EXPECT_TRUE(optimizer_init("share").keeps_step);
}

// With gradients of g / r from now on, Adam's first update m / sqrt(v) is as long as the parent's.
TEST(OptimizerShare, KeepsTheLengthOfTheFirstUpdateWithPowerTwo) {
  constexpr float kBeta1 = 0.9f, kBeta2 = 0.95f, kGradient = 0.3f;
  const float m = 0.2f, v = 0.1f;
  const auto update = [&](float mean, float square, float gradient) {
    return (kBeta1 * mean + (1 - kBeta1) * gradient) / std::sqrt(kBeta2 * square + (1 - kBeta2) * gradient * gradient);
  };
  for (const uint32_t r : {2u, 4u}) {
    const float first = apply("share", {m}, {.moment = Moment::kFirst, .num_siblings = r})[0];
    const float second = apply("share", {v}, {.moment = Moment::kSecond, .num_siblings = r})[0];
    EXPECT_NEAR(update(first, second, kGradient / static_cast<float>(r)) / update(m, v, kGradient), 1, 1e-5);
  }
}

TEST(OptimizerScale, HalvesTheMomentsOfAnEqualChild) {
  for (const auto moment : {Moment::kFirst, Moment::kSecond}) {
    EXPECT_THAT(apply("scale", {1, -2}, {.moment = moment, .weight_change = 0}), ElementsAre(0.5, -1));
  }
  EXPECT_TRUE(optimizer_init("scale").keeps_step);
}

TEST(OptimizerScale, ShrinksThemFurtherAsTheWeightsChangeDownToATenth) {
  EXPECT_THAT(apply("scale", {4}, {.weight_change = 0.25}), ElementsAre(1.5));
  EXPECT_THAT(apply("scale", {4}, {.weight_change = 0.95}), ElementsAre(4 * 0.05f));
  EXPECT_THAT(apply("scale", {4}, {.weight_change = 30}), ElementsAre(4 * 0.05f));
}

TEST(OptimizerInterpolate, MixesWithTheNextExpert) {
  const std::vector<float> next{3, 6};
  EXPECT_THAT(apply("interpolate", {1, -2}, {.next = next}), ElementsAre(2, 2));
  EXPECT_THAT(apply("interpolate", {1, -2}, {.next = next}, {{"alpha", 0.25}}), ElementsAre(1.5, 0));
}

class OptimizerInits : public ::testing::TestWithParam<const OptimizerInit*> {};
INSTANTIATE_TEST_SUITE_P(All, OptimizerInits, ::testing::ValuesIn(testing::rows_of(optimizer_inits())),
                         testing::RowName());

TEST_P(OptimizerInits, KeepSecondMomentsNotNegative) {
  auto moment = testing::normal_values(500, 1);
  auto next = testing::normal_values(500, 2);
  for (auto* values : {&moment, &next}) {
    for (float& x : *values) x *= x;
  }
  for (const double change : {0.0, 0.5, 10.0}) {
    const MomentContext context{.moment = Moment::kSecond, .weight_change = change, .next = next};
    for (const float v : apply(GetParam()->name, moment, context)) EXPECT_GE(v, 0.0f);
  }
}

TEST(OptimizerInitByName, NamesTheNearest) {
  testing::expect_error(ErrorCode::kUsage, {"optimizer-state", "'coppy'", "'copy'"},
                        [] { (void)optimizer_init("coppy"); });
}

}  // namespace
}  // namespace coppice::methods
