#include "coppice/cost/cluster.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "coppice/cost/options.h"
#include "tests/testing/errors.h"

namespace coppice::cost {
namespace {

using testing::expect_error;

// 1000 bytes per second in a node of 4, 10 between nodes.
Cluster slow() { return {"slow", 4, {1000, 0.001}, {10, 0.1}, "test"}; }

TEST(ClusterRows, AreUsable) {
  for (const Cluster& cluster : clusters()) {
    check_cluster(cluster, {.data = 64, .expert = 8});
    EXPECT_FALSE(cluster.source.empty()) << cluster.name;
    EXPECT_EQ(find_cluster(cluster.name).name, cluster.name);
    EXPECT_GE(cluster.node.bytes_per_s, cluster.network.bytes_per_s) << cluster.name;
  }
  expect_error(ErrorCode::kUsage, {"nvlink4-nrd", "nvlink4-ndr"}, [] { (void)find_cluster("nvlink4-nrd"); });
}

TEST(ClusterRows, AreTheOnesThatTheHelpNames) {
  CostOptions options;
  const auto specs = option_specs(options);
  const auto option = std::ranges::find(specs, "cluster", &OptionSpec::name);
  ASSERT_NE(option, specs.end());
  for (const Cluster& cluster : clusters())
    EXPECT_NE(option->help.find(cluster.name + ","), std::string::npos) << cluster.name;
  EXPECT_EQ(static_cast<size_t>(std::ranges::count(option->help, ',')), clusters().size());
}

TEST(ClusterCheck, RefusesWhatCannotBe) {
  const auto check = [](Cluster cluster, Parallelism ranks = {}) {
    return [cluster, ranks] { check_cluster(cluster, ranks); };
  };
  Cluster cluster = slow();
  cluster.network.bytes_per_s = 0;
  expect_error(ErrorCode::kUsage, {"slow", "a bandwidth of 0"}, check(cluster));
  cluster.network.bytes_per_s = std::numeric_limits<double>::infinity();
  expect_error(ErrorCode::kUsage, {"a bandwidth of inf"}, check(cluster));
  cluster = slow();
  cluster.node.latency_s = -1;
  expect_error(ErrorCode::kUsage, {"a latency of -1"}, check(cluster));
  cluster.node.latency_s = std::numeric_limits<double>::quiet_NaN();
  expect_error(ErrorCode::kUsage, {"a latency of nan"}, check(cluster));
  cluster = slow();
  cluster.gpus_per_node = 0;
  expect_error(ErrorCode::kUsage, {"0 GPUs"}, check(cluster));
  expect_error(ErrorCode::kUsage, {"6 ranks", "nodes of 4"}, check(slow(), {.data = 6}));
  expect_error(ErrorCode::kUsage, {"groups of 3", "--expert-parallel"}, check(slow(), {.data = 12, .expert = 3}));
  check_cluster(slow(), {.data = 3, .expert = 3});
  check_cluster(slow(), {.data = 8, .expert = 2});
  check_cluster(slow(), {.data = 16, .expert = 8});
}

TEST(ClusterSpread, CountsRanksOfAGroupInANode) {
  const auto is = [](Spread found, int64_t ranks, int64_t per_node) {
    EXPECT_EQ(found.ranks, ranks);
    EXPECT_EQ(found.per_node, per_node);
  };
  const Parallelism small{.data = 16, .expert = 2}, large{.data = 16, .expert = 8};
  is(all_ranks(slow(), small), 16, 4);
  is(expert_ranks(slow(), small), 2, 2);
  is(same_expert_ranks(slow(), small), 8, 2);
  is(expert_ranks(slow(), large), 8, 4);
  is(same_expert_ranks(slow(), large), 2, 1);
  is(same_expert_ranks(slow(), {.data = 2, .expert = 2}), 1, 1);
}

TEST(ShardedSeconds, AreThoseOfARingInANode) {
  EXPECT_DOUBLE_EQ(sharded_seconds(slow(), {1, 1}, 1e9), 0) << "one rank sends nothing";
  EXPECT_DOUBLE_EQ(sharded_seconds(slow(), {4, 4}, 0), 0);
  EXPECT_DOUBLE_EQ(sharded_seconds(slow(), {4, 4}, 4000), 3 * (0.001 + 1.0)) << "3 messages of 1000 bytes";
}

// 8 ranks in 2 nodes: 3 messages of a quarter in the node, then a quarter is halved across nodes.
TEST(ShardedSeconds, AreThoseOfTwoLevelsWhereThatIsFaster) {
  EXPECT_NEAR(sharded_seconds(slow(), {8, 4}, 800), 3 * (0.001 + 0.2) + (0.1 + 10), 1e-12);
  // One rank a node: both ways are the same ring.
  EXPECT_NEAR(sharded_seconds(slow(), {2, 1}, 800), 0.1 + 40, 1e-12);
}

// With slow nodes the flat ring is faster: it crosses nodes at twice the rate of one port and does not send twice.
TEST(ShardedSeconds, AreThoseOfTheFlatRingWhereThatIsFaster) {
  const Cluster even{"even", 2, {10, 0}, {10, 0}, "test"};
  EXPECT_NEAR(sharded_seconds(even, {4, 2}, 400), 3 * 100 / 10.0, 1e-12);
}

// 2 nodes of 4: of 700 bytes 300 stay in the node, 400 cross.
TEST(AllToAllSeconds, AreThoseOfTheFasterWay) {
  EXPECT_DOUBLE_EQ(all_to_all_seconds(slow(), {1, 1}, 700), 0);
  EXPECT_NEAR(all_to_all_seconds(slow(), {4, 4}, 300), 3 * 0.001 + 0.3, 1e-12);
  const double direct = 4 * 0.1 + 40, gathered = 3 * 0.001 + 0.3 + 0.3 + 0.1 + 40;
  EXPECT_NEAR(all_to_all_seconds(slow(), {8, 4}, 700), std::min(direct, gathered), 1e-12);
  Cluster prompt = slow();
  prompt.network.latency_s = 0;
  EXPECT_NEAR(all_to_all_seconds(prompt, {8, 4}, 700), 40, 1e-12) << "what stays in the node goes at the same time";
}

TEST(CollectiveSeconds, NeverFallWithBytesOrSlowerLinks) {
  for (const Spread spread : {Spread{2, 1}, Spread{4, 4}, Spread{8, 4}, Spread{64, 4}, Spread{64, 1}}) {
    for (const double bytes : {1.0, 1e3, 1e6}) {
      for (const auto time : {sharded_seconds, all_to_all_seconds}) {
        const double seconds = time(slow(), spread, bytes);
        EXPECT_GT(seconds, 0);
        EXPECT_GT(time(slow(), spread, 2 * bytes), seconds);
        Cluster slower = slow();
        slower.node.bytes_per_s /= 2;
        slower.network.bytes_per_s /= 2;
        EXPECT_GT(time(slower, spread, bytes), seconds);
        slower = slow();
        slower.node.latency_s *= 2;
        slower.network.latency_s *= 2;
        EXPECT_GT(time(slower, spread, bytes), seconds);
      }
    }
  }
}

}  // namespace
}  // namespace coppice::cost
