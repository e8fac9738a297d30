#include "coppice/step/buckets.h"

#include <gtest/gtest.h>

#include <random>

namespace coppice::step {
namespace {

std::vector<LocalSize> random_sizes(std::mt19937& random) {
  std::vector<LocalSize> out;
  const int layers = 1 + static_cast<int>(random() % 5);
  for (int layer = -1; layer <= layers; ++layer) {
    const size_t parameters = 1 + random() % 6;
    for (size_t i = 0; i < parameters; ++i) {
      out.push_back({layer, layer >= 0 && layer < layers && random() % 3 == 0, static_cast<int64_t>(random() % 3000)});
    }
  }
  std::ranges::shuffle(out, random);
  return out;
}

TEST(Buckets, HoldEveryElementOnceAndEveryRankKeepsItsShare) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const auto sizes = random_sizes(random);
    const int64_t groups = 1 + static_cast<int64_t>(random() % 4),
                  ranks = groups * (1 + static_cast<int64_t>(random() % 3));
    const auto buckets = make_buckets(sizes, ranks, groups, 4000);
    std::vector<int> seen(sizes.size(), 0);
    for (const Bucket& bucket : buckets) {
      const int64_t n = bucket.experts ? groups : ranks;
      ASSERT_EQ(bucket.count % n, 0);
      int64_t end = 0;
      for (const auto& part : bucket.parts) {
        ++seen[part.parameter];
        EXPECT_EQ(part.begin, end) << "parts follow one another";
        EXPECT_EQ(part.count, sizes[part.parameter].count);
        EXPECT_EQ(sizes[part.parameter].experts, bucket.experts);
        end = part.begin + part.count;
        // The intervals that the ranks keep of a parameter cover it in order.
        int64_t next = 0;
        for (int64_t rank = 0; rank < n; ++rank) {
          const Interval kept = bucket.kept_of(part, rank, n);
          if (kept.count() == 0) continue;
          EXPECT_EQ(kept.begin, next);
          next = kept.end;
        }
        EXPECT_EQ(next, part.count);
      }
      EXPECT_LE(end, bucket.count);
      EXPECT_LT(bucket.count - end, n * 64) << "no more padding than it takes";
    }
    EXPECT_EQ(seen, std::vector<int>(sizes.size(), 1));
    EXPECT_TRUE(std::ranges::is_sorted(buckets, {}, &Bucket::layer)) << "in the order of the forward pass";
  }
}

TEST(Buckets, AreAsManyWhateverTheNumberOfExpertsOfARank) {
  const auto sizes = [](int64_t experts) {
    return std::vector<LocalSize>{{-1, false, 100},        {0, false, 50}, {0, true, experts * 900},
                                  {0, true, experts * 30}, {1, false, 50}, {1, true, experts * 900},
                                  {2, false, 10}};
  };
  const auto few = make_buckets(sizes(1), 4, 2, 1000), many = make_buckets(sizes(7), 4, 2, 1000);
  ASSERT_EQ(few.size(), many.size());
  ASSERT_EQ(few.size(), 3u) << "one of the others, one for each layer's experts";
  for (size_t i = 0; i < few.size(); ++i) {
    EXPECT_EQ(few[i].experts, many[i].experts);
    EXPECT_EQ(few[i].parts.size(), many[i].parts.size());
  }
}

}  // namespace
}  // namespace coppice::step
