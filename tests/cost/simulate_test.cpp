#include "coppice/cost/simulate.h"

#include <gtest/gtest.h>

#include <array>

#include "coppice/cost/background_detail.h"
#include "coppice/cost/traffic.h"
#include "tests/testing/errors.h"

namespace coppice::cost {
namespace {

using testing::expect_error;

// 12 layers, 6 of them with experts.
ModelSize some_model(int64_t experts = 32, bool is_tied = false) {
  ModelSize size{.experts = experts,
                 .top_k = 2,
                 .moe_layers = 6,
                 .num_layers = 12,
                 .model_dim = 1024,
                 .vocab_size = 32000,
                 .attention_width = 1024};
  auto& count = size.parameters;
  count.embeddings = (is_tied ? 1 : 2) * 32000 * 1024;
  count.attention = 12 * 4 * 1024 * 1024;
  count.dense = 6 * 3 * 1024 * 4096;
  count.experts = experts * 6 * 3 * 1024 * 2048;
  count.routers = 6 * experts * 1024;
  count.norms = 12 * 2 * 1024;
  count.total = count.embeddings + count.attention + count.dense + count.experts + count.routers + count.norms;
  count.active = count.total - count.experts + count.experts / experts * 2;
  return size;
}

const Cluster& ndr() {
  static const Cluster cluster = find_cluster("nvlink4-ndr");
  return cluster;
}

StepWork work_of(double tokens_each, int64_t ranks) {
  return {.batch_tokens = tokens_each * static_cast<double>(ranks), .sequence_length = 2048, .utilisation = 0.5};
}

SimulatedStep step_of(const Parallelism& ranks, const Cluster& cluster = ndr(), const ModelSize& size = some_model()) {
  return simulate_step(size, device("h100"), cluster, ranks, {}, work_of(8192, ranks.data));
}

double visible(const SimulatedStep& step) {
  return step.compute_s + step.optimizer_s + step.all_to_all_s + step.reduce_s + step.gather_s;
}

constexpr std::array<Parallelism, 9> kRanks = {{{1, 1, false},
                                                {2, 2, true},
                                                {8, 1, true},
                                                {8, 8, true},
                                                {8, 4, false},
                                                {64, 8, true},
                                                {64, 32, true},
                                                {64, 1, false},
                                                {4096, 16, true}}};

TEST(SimulatedStepOf, IsTheSumOfItsParts) {
  for (const Cluster& cluster : clusters()) {
    for (const Parallelism& ranks : kRanks) {
      const SimulatedStep step = step_of(ranks, cluster);
      EXPECT_NEAR(step.total_s, visible(step), 1e-12 * step.total_s) << cluster.name << ", " << ranks.data << " ranks";
      for (const double part : {step.compute_s, step.optimizer_s, step.all_to_all_s, step.reduce_s, step.gather_s})
        EXPECT_GE(part, 0);
      EXPECT_GE(step.hidden_reduce_s, -1e-12);
      EXPECT_GE(step.hidden_gather_s, -1e-12);
    }
  }
}

// Without padding of tiles and without waiting for weights, compute is the FLOPs alone, as in estimate_step.
TEST(SimulatedStepOf, OneRankComputesAndSendsNothing) {
  const Device ideal{"ideal", 1e15, 1e30, 1, 0, "test", 0};
  for (const bool recompute : {false, true}) {
    for (const bool is_tied : {false, true}) {
      StepWork work = work_of(8192, 1);
      work.recompute = recompute;
      const ModelSize size = some_model(32, is_tied);
      const SimulatedStep step = simulate_step(size, ideal, ndr(), {}, {}, work);
      EXPECT_NEAR(step.compute_s, flops_per_token(size, 2048, recompute) * 8192 / 0.5e15, 1e-9 * step.compute_s);
      EXPECT_NEAR(step.compute_s, estimate_step(size, ideal, {}, {}, work).compute_s, 1e-9 * step.compute_s);
      EXPECT_EQ(step.all_to_all_s + step.reduce_s + step.gather_s + step.hidden_reduce_s + step.hidden_gather_s, 0);
    }
  }
}

TEST(SimulatedStepOf, SendsEverythingThatTheTrafficCounts) {
  // One rate, no latency, one GPU a node: seconds are bytes divided by the rate.
  const Cluster even{"even", 1, {1e9, 0}, {1e9, 0}, "test"};
  for (const bool recompute : {false, true}) {
    for (const Parallelism& ranks : {Parallelism{8, 4, true}, Parallelism{8, 4, false}, Parallelism{4, 1, true}}) {
      StepWork work = work_of(8192, ranks.data);
      work.recompute = recompute;
      work.micro_tokens = 2048;
      const SimulatedStep step = simulate_step(some_model(), device("h100"), even, ranks, {}, work);
      const Traffic sent = expected_traffic(some_model(), ranks, {}, 8192, exchange_of({}, work, 8192));
      EXPECT_NEAR(step.all_to_all_s, static_cast<double>(sent.all_to_all) / 1e9, 1e-6 * step.total_s);
      const double sums = step.reduce_s + step.hidden_reduce_s + step.gather_s + step.hidden_gather_s;
      EXPECT_NEAR(sums, static_cast<double>(sent.reduce_scatter + sent.all_gather) / 1e9, 1e-6 * step.total_s);
    }
  }
}

TEST(SimulatedStepOf, IsNeverShorterOnSlowerLinks) {
  for (const Parallelism& ranks : kRanks) {
    const double base = step_of(ranks).total_s;
    double before = base;
    for (const double slower : {2.0, 10.0, 100.0}) {
      for (const bool latency : {false, true}) {
        Cluster cluster = ndr();
        for (Link* link : {&cluster.node, &cluster.network}) {
          if (latency)
            link->latency_s *= slower;
          else
            link->bytes_per_s /= slower;
        }
        EXPECT_GE(step_of(ranks, cluster).total_s, base * (1 - 1e-12)) << ranks.data;
      }
      Cluster cluster = ndr();
      for (Link* link : {&cluster.node, &cluster.network})
        *link = {link->bytes_per_s / slower, link->latency_s * slower};
      const double both = step_of(ranks, cluster).total_s;
      EXPECT_GE(both, before * (1 - 1e-12)) << ranks.data;
      before = both;
    }
  }
}

TEST(SimulatedStepOf, IsNeverShorterWithMoreExperts) {
  for (const Parallelism& ranks : kRanks) {
    double before = 0;
    for (const int64_t experts : {32, 64, 128, 256}) {
      const SimulatedStep step = step_of(ranks, ndr(), some_model(experts));
      EXPECT_GT(step.total_s, before) << ranks.data << " ranks, " << experts;
      before = step.total_s;
    }
  }
}

// Fewer rows for each expert: more of a tile is padding, and more weights are read.
TEST(SimulatedStepOf, ComputesSlowerInSmallGroups) {
  StepWork small = work_of(8192, 8);
  small.micro_tokens = 2048;
  const Parallelism ranks{8, 8, true};
  const SimulatedStep in_one = step_of(ranks),
                      in_four = simulate_step(some_model(), device("h100"), ndr(), ranks, {}, small);
  EXPECT_GT(in_four.compute_s, in_one.compute_s);
  EXPECT_GT(step_of(ranks, ndr(), some_model(256)).compute_s, in_one.compute_s);
}

TEST(SimulatedStepOf, HidesGradientsBehindTheBackwardPass) {
  const Parallelism ranks{64, 8, true};
  const SimulatedStep step = step_of(ranks);
  EXPECT_GT(step.hidden_reduce_s, 0);
  // Only the last micro-batch hides them.
  StepWork long_step = work_of(64 * 2048, 64);
  long_step.micro_tokens = 2048;
  const SimulatedStep whole = simulate_step(some_model(), device("h100"), ndr(), ranks, {}, work_of(64 * 2048, 64));
  const SimulatedStep parts = simulate_step(some_model(), device("h100"), ndr(), ranks, {}, long_step);
  EXPECT_LT(whole.reduce_s, parts.reduce_s);
  EXPECT_NEAR(whole.reduce_s + whole.hidden_reduce_s, parts.reduce_s + parts.hidden_reduce_s, 1e-9);
}

TEST(SimulatedStepOf, SendsLessOnceForEachRank) {
  const Parallelism ranks{8, 4, true};
  StepWork work = work_of(8192, 8);
  const double each = simulate_step(some_model(), device("h100"), ndr(), ranks, {}, work).all_to_all_s;
  work.once_per_rank = true;
  EXPECT_LT(simulate_step(some_model(), device("h100"), ndr(), ranks, {}, work).all_to_all_s, each);
}

TEST(SimulatedStepOf, RefusesLessThanASequenceForARank) {
  expect_error(ErrorCode::kUsage, {"batch-tokens", "8 ranks", "2048"},
               [] { (void)simulate_step(some_model(), device("h100"), ndr(), {.data = 8}, {}, work_of(1024, 8)); });
  Cluster none = ndr();
  none.node.bytes_per_s = 0;
  expect_error(ErrorCode::kUsage, {"bandwidth of 0"}, [&] { (void)step_of({.data = 8}, none); });
}

TEST(BackgroundTransfers, RunInOrderWhileTheForegroundIsBusy) {
  detail::Background background;
  const size_t first = background.add(3, true), second = background.add(2, false);
  background.pass(1);
  background.pass_beside(10, true);  // the first stands still
  EXPECT_DOUBLE_EQ(background.finish(first), 2);
  EXPECT_DOUBLE_EQ(background.finish(first), 0) << "it is done";
  background.pass_beside(0.5, true);  // the second uses another link
  EXPECT_DOUBLE_EQ(background.finish(second), 1.5);
  background.pass(5);
  background.add(1, true);
  background.add(1, true);
  background.pass(1.5);
  EXPECT_DOUBLE_EQ(background.finish(), 0.5);
  EXPECT_DOUBLE_EQ(detail::Background().finish(), 0);
}

}  // namespace
}  // namespace coppice::cost
