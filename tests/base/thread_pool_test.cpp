#include "coppice/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace coppice {
namespace {

TEST(ParallelFor, CallsEveryIndexOnce) {
  for (const size_t threads : {0, 1, 2, 7, 100}) {
    for (const size_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> calls(count);
      parallel_for(count, threads, [&](size_t i) { ++calls[i]; });
      for (const auto& n : calls) EXPECT_EQ(n, 1);
    }
  }
}

TEST(ParallelFor, RunsInOrderOnOneThread) {
  std::vector<size_t> order;
  parallel_for(5, 1, [&](size_t i) { order.push_back(i); });
  EXPECT_EQ(order, (std::vector<size_t>{0, 1, 2, 3, 4}));
}

TEST(ParallelFor, NestsWithoutDeadlock) {
  std::atomic<int> calls = 0;
  parallel_for(4, 4, [&](size_t) { parallel_for(8, 4, [&](size_t) { ++calls; }); });
  EXPECT_EQ(calls, 32);
}

TEST(ParallelFor, RethrowsTheLowestIndexThatThrew) {
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::atomic<int> waiting = 0;
    try {
      parallel_for(4, 4, [&](size_t i) {
        ++waiting;
        while (waiting < 4) {
        }  // all four have begun, so all four throw
        throw std::runtime_error(std::to_string(i));
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& e) {
      EXPECT_STREQ(e.what(), "0");
    }
  }
}

TEST(ParallelFor, StartsNothingAfterAFailure) {
  std::atomic<int> calls = 0;
  EXPECT_THROW(parallel_for(1000, 1,
                            [&](size_t i) {
                              ++calls;
                              if (i == 3) throw std::runtime_error("stop");
                            }),
               std::runtime_error);
  EXPECT_EQ(calls, 4);
}

TEST(DefaultThreads, IsAtLeastOne) { EXPECT_GE(default_threads(), 1U); }

}  // namespace
}  // namespace coppice
