// The groups of a world, and what is said and done on all ranks.
#include "coppice/dist/world.h"

#include <ATen/ATen.h>

#include "coppice/dist/all_or_none.h"
#include "tests/dist/thread_ranks.h"
#include "tests/testing/errors.h"

namespace coppice::dist {
namespace {

double sum_of_ranks(Group& group, int64_t rank) {
  const at::Tensor x = at::full({1}, static_cast<double>(rank));
  group.all_reduce(x).wait();
  return x.item<double>();
}

TEST(World, SplitsItsRanksIntoGroupsOfExperts) {
  testing::run_ranks(4,
                     [](World& world) {
                       const int64_t rank = world.rank();
                       EXPECT_EQ(world.experts().size(), 2);
                       EXPECT_EQ(world.experts().rank(), rank % 2);
                       EXPECT_EQ(sum_of_ranks(world.experts(), rank), rank < 2 ? 1 : 5);
                       EXPECT_EQ(world.same_experts().size(), 2);
                       EXPECT_EQ(world.same_experts().rank(), rank / 2);
                       EXPECT_EQ(sum_of_ranks(world.same_experts(), rank), rank % 2 == 0 ? 2 : 4);
                       EXPECT_EQ(sum_of_ranks(world.all(), rank), 6);
                       EXPECT_EQ(world.same_experts().name_of(1), world.name_of(rank % 2 + 2));
                     },
                     {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

TEST(World, SendsRowsToExpertsByAGroupOfTheirOwn) {
  testing::run_ranks(2,
                     [](World& world) {
                       EXPECT_NE(&world.all(), &world.experts());
                       EXPECT_EQ(world.same_experts().size(), 1);
                     },
                     {.expert_parallel = 2, .timeout = std::chrono::seconds(60)});
  testing::run_ranks(2, [](World& world) {
    EXPECT_EQ(&world.all(), &world.same_experts());
    EXPECT_EQ(world.experts().size(), 1);
    EXPECT_NE(&world.all(), &world.control());
  });
}

TEST(World, RefusesGroupsOfExpertsThatDoNotFillTheRanks) {
  const auto errors = testing::try_ranks(4, [](World&) {}, {.expert_parallel = 3});
  for (const auto& error : errors)
    EXPECT_THAT(error, ::testing::HasSubstr("groups of 3 of 4 ranks; take a number that divides 4"));
}

TEST(World, RefusesADeviceWithoutABackend) {
  const auto errors = testing::try_ranks(2, [](World&) {}, {.device = at::kMeta});
  for (const auto& error : errors)
    EXPECT_THAT(error, ::testing::HasSubstr("cannot send tensors on meta between processes"));
  testing::run_ranks(1, [](World& world) { EXPECT_EQ(world.all().size(), 1); }, {.device = at::kMeta});
}

TEST(AllOrNone, ThrowsOnEveryRankIfAnyThrew) {
  for (const int64_t size : {1, 2, 4}) {
    testing::run_ranks(size, [&](World& world) {
      all_or_none(world.control(), [] {});
      const int64_t last = size - 1;
      const auto run = [&] {
        all_or_none(world.control(), [&] {
          if (world.rank() == last) throw Error(ErrorCode::kIo, "no space left");
        });
      };
      if (world.rank() == last) {
        testing::expect_error(ErrorCode::kIo, {"no space left"}, run);
      } else {
        const std::string wanted = cat(world.name_of(last), " failed: no space left");
        testing::expect_error(ErrorCode::kPeer, {wanted.c_str()}, run);
      }
      EXPECT_EQ(sum_of_ranks(world.all(), 1), static_cast<double>(size));  // the world goes on
    });
  }
}

TEST(AllOrNone, KeepsTheExceptionOfEachRankThatThrew) {
  testing::run_ranks(4, [](World& world) {
    const auto run = [&] {
      all_or_none(world.control(), [&] {
        if (world.rank() > 0) throw Error(ErrorCode::kFormat, cat("shard ", world.rank()));
      });
    };
    const std::string wanted = world.rank() == 0 ? "rank 1 (a thread) failed: shard 1" : cat("shard ", world.rank());
    testing::expect_error(world.rank() == 0 ? ErrorCode::kPeer : ErrorCode::kFormat, {wanted.c_str()}, run);
  });
}

TEST(BroadcastText, GivesTheTextOfTheRoot) {
  for (const int64_t size : {1, 2, 4}) {
    testing::run_ranks(size, [&](World& world) {
      const std::string long_text(100'000, 'x');
      for (const std::string& text : {std::string(), std::string("a\0b", 3), long_text}) {
        for (const int64_t root : {int64_t{0}, size - 1}) {
          EXPECT_EQ(broadcast_text(world.control(), world.rank() == root ? text : "another", root), text);
        }
      }
    });
  }
}

}  // namespace
}  // namespace coppice::dist
