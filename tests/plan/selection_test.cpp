#include "coppice/plan/selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "coppice/base/text.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::plan {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::expect_error;
using Counts = std::vector<uint32_t>;
using Cap = std::optional<uint64_t>;

Counts choose(std::string_view rule, const std::vector<double>& scores, int64_t num_new, Cap cap = std::nullopt,
              uint64_t seed = 0, double temperature = 1.0) {
  return select_parents(
      selection_rule(rule),
      {.scores = scores, .num_new = num_new, .max_duplicates = cap, .temperature = temperature, .key = {.seed = seed}},
      static_cast<int64_t>(scores.size()));
}

// -- what holds for every rule ------------------------------------------------

class SelectionRules : public ::testing::TestWithParam<const SelectionRule*> {
 protected:
  struct Case {
    std::vector<double> scores;
    int64_t num_new;
    Cap cap;
    uint64_t seed;
  };
  Case draw(std::mt19937_64& bits) {
    const auto below = [&](uint64_t n) { return bits() % n; };
    Case c{std::vector<double>(1 + below(40)), 0, std::nullopt, bits()};
    const uint64_t kind = below(5);
    for (double& s : c.scores) {
      const double u = static_cast<double>(below(1000)) / 999.0;
      s = kind == 0   ? 0.0                            // all zero
          : kind == 1 ? 3.5                            // all equal
          : kind == 2 ? std::pow(10.0, 600 * u - 300)  // 600 orders of magnitude
          : kind == 3 ? (below(4) == 0 ? u : 0.0)      // mostly zero
                      : u;
    }
    c.num_new = static_cast<int64_t>(1 + below(5 * c.scores.size()));
    if (below(3) != 0) c.cap = 1 + below(6);
    return c;
  }
};
INSTANTIATE_TEST_SUITE_P(All, SelectionRules, ::testing::ValuesIn(testing::rows_of(selection_rules())),
                         testing::RowName());

TEST_P(SelectionRules, PlaceEveryCopyWithinTheCapAndTheSameWayTwice) {
  std::mt19937_64 bits(1);
  for (int i = 0; i < 2000; ++i) {
    const Case c = draw(bits);
    const auto experts = c.scores.size();
    SCOPED_TRACE(cat("case ", i, ": E ", experts, ", n ", c.num_new, ", cap ", c.cap.value_or(0)));
    const Counts counts = choose(GetParam()->name, c.scores, c.num_new, c.cap, c.seed);
    ASSERT_EQ(counts.size(), experts);
    ASSERT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), c.num_new);
    if (c.cap) {
      const uint64_t rounds = static_cast<uint64_t>(c.num_new) / (*c.cap * experts);
      for (const uint32_t count : counts) {
        ASSERT_GE(count, rounds * *c.cap);
        ASSERT_LE(count, (rounds + 1) * *c.cap);
      }
    }
    ASSERT_EQ(counts, choose(GetParam()->name, c.scores, c.num_new, c.cap, c.seed));
  }
}

TEST_P(SelectionRules, WholeRoundsOfTheCapGoToEveryone) {
  EXPECT_THAT(choose(GetParam()->name, {5, 1, 0, 2}, 12, 3), Each(3u));
  EXPECT_THAT(choose(GetParam()->name, {5, 1, 0, 2}, 24, 3), Each(6u));
  const Counts one_more = choose(GetParam()->name, {5, 1, 1, 2}, 13, 3);
  EXPECT_EQ(*std::ranges::min_element(one_more), 3u);
  EXPECT_EQ(*std::ranges::max_element(one_more), 4u);
}

TEST_P(SelectionRules, AllZeroScoresActAsEqualOnes) {
  EXPECT_EQ(choose(GetParam()->name, {0, 0, 0, 0, 0}, 7, 3), choose(GetParam()->name, {1, 1, 1, 1, 1}, 7, 3));
}

TEST_P(SelectionRules, NoScoresActAsEqualOnes) {
  const SelectionInput input{.scores = {}, .num_new = 7, .max_duplicates = 3, .temperature = 1.0, .key = {}};
  EXPECT_EQ(select_parents(*GetParam(), input, 5), choose(GetParam()->name, {1, 1, 1, 1, 1}, 7, 3));
}

TEST_P(SelectionRules, DoNotDependOnTheScaleOfTheScores) {
  const std::vector<double> scores{3, 1, 4, 1, 5, 9, 2, 6};
  auto scaled = scores;
  for (double& s : scaled) s *= 0x1p-900;
  EXPECT_EQ(choose(GetParam()->name, scores, 11, 3), choose(GetParam()->name, scaled, 11, 3));
}

TEST_P(SelectionRules, RefuseScoresThatAreNoneNamingLayerAndExpert) {
  for (const double bad : {std::nan(""), -1.0, std::numeric_limits<double>::infinity()}) {
    SCOPED_TRACE(bad);
    const std::vector<double> scores{1, 2, bad};
    expect_error(ErrorCode::kNonFinite, {"layer 9", "expert 2"},
                 [&] { (void)select_parents(*GetParam(), {.scores = scores, .num_new = 1, .key = {.layer = 9}}, 3); });
  }
}

TEST_P(SelectionRules, RefuseACapOfZeroAndTemperaturesThatAreNone) {
  expect_error(ErrorCode::kUsage, {"max-duplicates"}, [&] { (void)choose(GetParam()->name, {1, 2}, 1, 0); });
  for (const double bad : {0.0, -1.0, std::nan("")}) {
    expect_error(ErrorCode::kUsage, {"temperature"}, [&] { (void)choose(GetParam()->name, {1, 2}, 1, 3, 0, bad); });
  }
}

TEST_P(SelectionRules, OneExpertTakesAll) { EXPECT_THAT(choose(GetParam()->name, {2}, 5), ElementsAre(5u)); }

// -- examples by hand ---------------------------------------------------------

TEST(SelectUniform, DealsWholeRoundsThenTheRestByIndex) {
  EXPECT_THAT(choose("uniform", {1, 9, 5, 2}, 4), ElementsAre(1u, 1u, 1u, 1u));
  EXPECT_THAT(choose("uniform", {1, 9, 5, 2}, 6), ElementsAre(2u, 2u, 1u, 1u));
}

TEST(SelectGreedy, FillsTheBestBeforeTheNext) {
  EXPECT_THAT(choose("greedy", {1, 9, 5, 2}, 5, 3), ElementsAre(0u, 3u, 2u, 0u));
  EXPECT_THAT(choose("greedy", {1, 9, 5, 2}, 5), ElementsAre(0u, 5u, 0u, 0u));
}

TEST(SelectGreedy, GivesTiesToTheLowerIndex) {
  EXPECT_THAT(choose("greedy", {2, 5, 5, 5}, 4, 3), ElementsAre(0u, 3u, 1u, 0u));
}

// Doubling with cap 3: the best floor(E / 3) get 3 copies each, the next one E mod 3, all others none.
TEST(SelectGreedy, DoublingWithCapThreeFeedsAThirdOfTheExperts) {
  for (size_t experts = 2; experts <= 130; ++experts) {
    std::vector<double> falling(experts);
    for (size_t e = 0; e < experts; ++e) falling[e] = static_cast<double>(experts - e);
    const Counts counts = choose("greedy", falling, static_cast<int64_t>(experts), 3);
    for (size_t e = 0; e < experts; ++e) {
      const size_t wanted = e < experts / 3 ? 3 : e == experts / 3 ? experts % 3 : 0;
      ASSERT_EQ(counts[e], wanted) << "E " << experts << ", expert " << e;
    }
  }
}

TEST(SelectProportional, RoundsQuotasByLargestFraction) {
  EXPECT_THAT(choose("proportional", {5, 3, 2}, 10), ElementsAre(5u, 3u, 2u));
  // Quotas 3.5, 2.1, 1.4: floors 3, 2, 1, and the one left goes to the fraction .5.
  EXPECT_THAT(choose("proportional", {5, 3, 2}, 7), ElementsAre(4u, 2u, 1u));
}

TEST(SelectProportional, FixesQuotasAtTheCapAndSharesTheRestAgain) {
  // 6 * .8 = 4.8 is cut to 3; of the 3 left the others' quotas are 1.5, .75, .75.
  EXPECT_THAT(choose("proportional", {16, 2, 1, 1}, 6, 3), ElementsAre(3u, 1u, 1u, 1u));
  // Cutting the first makes the second reach the cap: 8 * .7 -> 3; 5 * 2/3 = 3.33 -> 3; the last takes 2.
  EXPECT_THAT(choose("proportional", {7, 2, 1}, 8, 3), ElementsAre(3u, 3u, 2u));
}

TEST(SelectProportional, BreaksTiesOfFractionsByScoreThenIndex) {
  // Quotas 1.5, .5, .5, .5: three floors of 0 and one of 1, two left; the higher score first, then the lower index.
  EXPECT_THAT(choose("proportional", {1, 3, 1, 1}, 3), ElementsAre(1u, 2u, 0u, 0u));
}

TEST(SelectProportional, SpreadsWhatIsLeftWhenAllOpenScoresAreZero) {
  EXPECT_THAT(choose("proportional", {0, 1, 0, 0}, 5, 3), ElementsAre(1u, 3u, 1u, 0u));
}

TEST(SelectWaterfill, LevelsTheScorePerCopy) {
  // Levels 8, 4, 2. One copy makes them 4, 4, 2; of the tie the second has fewer copies: 4, 2, 2; then the first: 8/3,
  // 2, 2.
  EXPECT_THAT(choose("waterfill", {8, 4, 2}, 1), ElementsAre(1u, 0u, 0u));
  EXPECT_THAT(choose("waterfill", {8, 4, 2}, 2), ElementsAre(1u, 1u, 0u));
  EXPECT_THAT(choose("waterfill", {8, 4, 2}, 3), ElementsAre(2u, 1u, 0u));
  EXPECT_THAT(choose("waterfill", {8, 4, 2}, 11), ElementsAre(7u, 3u, 1u));
}

TEST(SelectWaterfill, NeedsNoCapAndKeepsAGivenOne) {
  EXPECT_THAT(choose("waterfill", {100, 1}, 9), ElementsAre(9u, 0u));
  EXPECT_THAT(choose("waterfill", {100, 1}, 4, 3), ElementsAre(3u, 1u));
}

TEST(SelectWaterfill, DealsRoundRobinAmongEqualScores) {
  EXPECT_THAT(choose("waterfill", {1, 1, 1, 1}, 6), ElementsAre(2u, 2u, 1u, 1u));
}

TEST(SelectWeightedSampling, DrawsInProportionToTheSoftmaxOfStandardisedScores) {
  // Scores 1, 2, 3 standardise to -s, 0, s with s = sqrt(3/2); 3,000 seeds of one draw each against the softmax.
  const double s = std::sqrt(1.5);
  const double weights[] = {std::exp(-s), 1.0, std::exp(s)};
  const double sum = weights[0] + weights[1] + weights[2];
  constexpr int kDraws = 3000;
  double seen[3] = {};
  for (int seed = 0; seed < kDraws; ++seed) {
    const Counts counts = choose("weighted_sampling", {1, 2, 3}, 1, 3, static_cast<uint64_t>(seed));
    for (size_t e = 0; e < 3; ++e) seen[e] += counts[e];
  }
  for (size_t e = 0; e < 3; ++e) {
    const double p = weights[e] / sum;
    EXPECT_NEAR(seen[e] / kDraws, p, 5 * std::sqrt(p * (1 - p) / kDraws)) << e;
  }
}

TEST(SelectWeightedSampling, BecomesGreedyAsTheTemperatureFalls) {
  EXPECT_EQ(choose("weighted_sampling", {1, 9, 5, 2}, 5, 3, 0, 1e-3), choose("greedy", {1, 9, 5, 2}, 5, 3));
  EXPECT_EQ(choose("weighted_sampling", {1, 9, 5, 2}, 8, 3, 4, 1e-300), choose("greedy", {1, 9, 5, 2}, 8, 3));
}

TEST(SelectWeightedSampling, BecomesEvenAsTheTemperatureRises) {
  const Counts counts = choose("weighted_sampling", {1, 9, 5, 2}, 4000, std::nullopt, 0, 1e6);
  for (const uint32_t count : counts) EXPECT_NEAR(count, 1000.0, 150.0);
}

TEST(SelectWeightedSampling, DependsOnTheSeed) {
  std::vector<double> scores(32, 1.0);
  EXPECT_NE(choose("weighted_sampling", scores, 32, 3, 1), choose("weighted_sampling", scores, 32, 3, 2));
}

TEST(SelectionRuleByName, NamesTheNearest) {
  EXPECT_EQ(selection_rule("waterfill").name, "waterfill");
  expect_error(ErrorCode::kUsage, {"'greddy'", "'greedy'"}, [] { (void)selection_rule("greddy"); });
}

TEST(SelectionRuleTable, GivesADefaultCapToEveryRuleThatCouldPileUp) {
  for (const SelectionRule& rule : selection_rules()) {
    const bool levels_itself = rule.name == "uniform" || rule.name == "waterfill";
    EXPECT_EQ(rule.default_cap, levels_itself ? Cap() : Cap(3)) << rule.name;
    EXPECT_EQ(rule.needs_scores, rule.name != "uniform") << rule.name;
  }
}

}  // namespace
}  // namespace coppice::plan
