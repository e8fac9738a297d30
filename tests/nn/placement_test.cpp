#include "coppice/nn/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/testing/errors.h"

namespace coppice::nn {
namespace {

using ::testing::ElementsAre;

TEST(PlaceExperts, GoesRoundTheRanksWithoutALineage) {
  const auto placed = place_experts(7, {}, 3);
  EXPECT_THAT(placed.rank_of, ElementsAre(0, 1, 2, 0, 1, 2, 0));
  EXPECT_THAT(placed.experts_of(0), ElementsAre(0, 3, 6));
  EXPECT_THAT(placed.experts_of(2), ElementsAre(2, 5));
  EXPECT_THAT(place_experts(3, {}, 1).experts_of(0), ElementsAre(0, 1, 2));
}

TEST(PlaceExperts, SpreadsSiblings) {
  const std::vector<uint32_t> parents{0, 1, 2, 3, 0, 1, 2, 3};
  EXPECT_THAT(place_experts(8, parents, 2).rank_of, ElementsAre(0, 1, 0, 1, 1, 0, 1, 0));
  const std::vector<uint32_t> one_lineage{0, 0, 0, 0, 0};
  EXPECT_THAT(place_experts(5, one_lineage, 2).rank_of, ElementsAre(0, 1, 0, 1, 0));
}

// What a growth on ranks relies on: an original does not move.
TEST(PlaceExperts, LeavesOriginalsWhereTheyWere) {
  const std::vector<uint32_t> first{0, 1, 2, 3, 4, 5}, second{0, 1, 2, 3, 4, 5, 5, 0, 0, 5, 2, 5};
  const auto before = place_experts(6, {}, 4), after = place_experts(6, first, 4), grown = place_experts(12, second, 4);
  EXPECT_EQ(before.rank_of, after.rank_of);
  EXPECT_TRUE(std::equal(before.rank_of.begin(), before.rank_of.end(), grown.rank_of.begin()));
}

TEST(PlaceExperts, GivesEveryRankAFairNumberAndSiblingsAsManyRanksAsThereAre) {
  for (int64_t experts = 1; experts < 40; ++experts) {
    for (int64_t ranks = 1; ranks <= std::min<int64_t>(experts, 9); ++ranks) {
      for (const uint32_t lineages : {1u, 3u, 11u}) {
        std::vector<uint32_t> parents;
        for (uint32_t e = 0; e < experts; ++e) parents.push_back(e * e % lineages);
        const auto placed = place_experts(experts, parents, ranks);
        std::vector<int64_t> all;
        for (int64_t r = 0; r < ranks; ++r) {
          const auto own = placed.experts_of(r);
          EXPECT_GE(std::ssize(own), 1) << experts << " " << ranks;
          EXPECT_LE(std::ssize(own), (experts + ranks - 1) / ranks) << experts << " " << ranks;
          EXPECT_TRUE(std::ranges::is_sorted(own));
          all.insert(all.end(), own.begin(), own.end());
        }
        std::ranges::sort(all);
        EXPECT_EQ(std::ssize(all), experts);
        EXPECT_TRUE(std::ranges::adjacent_find(all) == all.end());
      }
    }
  }
}

TEST(PlaceExperts, RefusesMoreRanksThanExperts) {
  testing::expect_error(ErrorCode::kUsage, {"8 ranks for 4 experts", "at least one expert a rank"},
                        [] { (void)place_experts(4, {}, 8); });
}

}  // namespace
}  // namespace coppice::nn
