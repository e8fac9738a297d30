#include "coppice/cost/traffic.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <set>
#include <vector>

namespace coppice::cost {
namespace {

// The ring itself: in each of n - 1 turns a rank hands on one shard of the padded bucket.
uint64_t sent_by_a_ring(int64_t values, int64_t ranks, int64_t value_bytes) {
  int64_t padded = values;
  while (padded % (64 * ranks) != 0) ++padded;
  uint64_t sent = 0;
  for (int64_t turn = 1; turn < ranks; ++turn) sent += static_cast<uint64_t>(padded / ranks * value_bytes);
  return sent;
}

TEST(ShardedBytes, AreWhatARingSendsOfPaddedBuckets) {
  const std::array<int64_t, 4> buckets = {1000, 7, 0, 12};
  for (const int64_t ranks : {1, 2, 3, 4, 64}) {
    uint64_t sent = 0;
    for (const int64_t values : buckets) sent += sent_by_a_ring(values, ranks, 4);
    EXPECT_EQ(sharded_bytes(buckets, ranks, 4), sent) << ranks;
  }
  EXPECT_EQ(sharded_bytes(buckets, 1, 4), 0u) << "one rank sends nothing";
  EXPECT_EQ(sharded_bytes(std::array<int64_t, 1>{1024}, 4, 2), 1536u) << "3/4 of 1024 values of 2 bytes";
  EXPECT_EQ(sharded_bytes(std::array<int64_t, 1>{1000}, 4, 2), 1536u) << "of the padded bucket";
}

// Forward: counts for 6 experts, the row with its gate, and the result; backward: their gradients, and the gate's.
TEST(ExchangeBytes, CountEachTransferOfARow) {
  const RowBytes row{.model_dim = 16, .activation_bytes = 2};
  const std::array<ExchangedRows, 1> none = {{{}}}, left = {{{.left = 1}}}, came = {{{.came = 1}}};
  EXPECT_EQ(exchange_bytes(row, 6, none), 6u * 8);
  EXPECT_EQ(exchange_bytes(row, 6, left), 48u + 32 + 4 + 32);
  EXPECT_EQ(exchange_bytes(row, 6, came), 48u + 32 + 32 + 4);
  const RowBytes again{.model_dim = 16, .activation_bytes = 2, .recompute = true};
  EXPECT_EQ(exchange_bytes(again, 6, left), 2u * (48 + 32 + 4) + 32) << "the forward exchange twice";
  EXPECT_EQ(exchange_bytes(again, 6, came), 2u * (48 + 32) + 32 + 4);
  const std::array<ExchangedRows, 2> two = {{{3, 5}, {0, 2}}};
  EXPECT_EQ(exchange_bytes(row, 6, two), 2u * 48 + 3u * 68 + 7u * 68);
  EXPECT_EQ(exchange_bytes(row, 6, {}), 0u);
}

// All choices of K of 8 experts on 4 ranks, seen from rank 0.
TEST(ExpectedRows, AreTheMeanOverAllChoices) {
  for (const int64_t top_k : {1, 2, 3, 8}) {
    double choices = 0, rows = 0, vectors = 0;
    for (uint32_t chosen = 0; chosen < 256; ++chosen) {
      if (std::popcount(chosen) != top_k) continue;
      std::set<int64_t> ranks;
      for (int64_t expert = 0; expert < 8; ++expert) {
        if ((chosen >> expert & 1) == 0 || expert / 2 == 0) continue;
        rows += 1;
        ranks.insert(expert / 2);
      }
      choices += 1;
      vectors += static_cast<double>(ranks.size());
    }
    const auto k = static_cast<double>(top_k);
    const ExpectedRows found = expected_rows(1, {.experts = 8, .top_k = k}, {.data = 4, .expert = 4});
    EXPECT_NEAR(found.left, rows / choices, 1e-12) << top_k;
    EXPECT_NEAR(found.came, found.left, 1e-12);
    EXPECT_NEAR(expected_vectors(1, k, 4, 8), vectors / choices, 1e-12) << top_k;
  }
  EXPECT_EQ(expected_rows(100, {.experts = 8, .top_k = 2}, {}).left, 0);
  EXPECT_EQ(expected_vectors(100, 2, 1, 8), 0);
}

ModelSize thousand() {
  ModelSize size{.experts = 8, .top_k = 2, .moe_layers = 3, .num_layers = 3, .model_dim = 16};
  size.parameters = {.total = 1000, .active = 400, .experts = 800};
  return size;
}

TEST(ExpectedTraffic, IsThatOfItsCollectives) {
  const Parallelism ranks{.data = 8, .expert = 4, .zero1 = true};
  const Traffic found = expected_traffic(thousand(), ranks, {}, 10, {});
  EXPECT_EQ(found.reduce_scatter, 4u * (7 * 25 + 1 * 100)) << "200 over 8 ranks, 200 of experts over 2";
  EXPECT_EQ(found.all_gather, 2u * (7 * 25 + 1 * 100)) << "in the dtype of the weights";
  // Rows of one layer that leave a rank: 10 tokens, top-2, 3 of 4. As many come.
  const std::vector<ExchangedRows> exchanges(3, {.left = 15, .came = 15});
  EXPECT_EQ(found.all_to_all, exchange_bytes({.model_dim = 16}, 6, exchanges));
  EXPECT_EQ(found.total(), found.reduce_scatter + found.all_gather + found.all_to_all);
}

TEST(ExpectedTraffic, IsNothingOnOneRank) { EXPECT_EQ(expected_traffic(thousand(), {}, {}, 10, {}).total(), 0u); }

TEST(ExpectedTraffic, WithoutShardsIsAnAllReduceOfGradients) {
  const Traffic found = expected_traffic(thousand(), {.data = 4}, {}, 10, {});
  EXPECT_EQ(found.reduce_scatter, 3u * 250 * 4);
  EXPECT_EQ(found.all_gather, found.reduce_scatter);
}

TEST(AllToAll, IsSmallerIfATokenGoesOnceToARank) {
  const Parallelism ranks{.data = 4, .expert = 4};
  const double each = all_to_all_bytes(thousand(), ranks),
               once = all_to_all_bytes(thousand(), ranks, {.once_per_rank = true});
  const double vectors = expected_vectors(1, 2, 4, 8) / expected_rows(1, thousand(), ranks).left;
  EXPECT_LT(vectors, 1);
  EXPECT_NEAR(once, 3 * 1.5 * (4 * 32 * vectors + 8), 1e-9);
  EXPECT_NEAR(each, 3 * 1.5 * (4 * 32 + 8), 1e-9);
}

}  // namespace
}  // namespace coppice::cost
