// The collectives on 1, 2 and 4 ranks: what each gives, and what it does not take.
#include "coppice/dist/group.h"

#include <ATen/ATen.h>

#include "tests/dist/thread_ranks.h"
#include "tests/testing/errors.h"

namespace coppice::dist {
namespace {

using ::testing::HasSubstr;
using ::testing::TestWithParam;
using ::testing::Values;

class GroupOf : public TestWithParam<int64_t> {
 protected:
  int64_t size() const { return GetParam(); }
};

const auto kReducible = {at::kFloat, at::kDouble, at::kLong, at::kBFloat16};
const auto kAny = {at::kFloat, at::kDouble, at::kLong, at::kBFloat16, at::kHalf, at::kInt, at::kByte, at::kBool};

TEST_P(GroupOf, AllReduceGivesTheSumOnEveryRank) {
  testing::run_ranks(size(), [&](World& world) {
    for (const auto dtype : kReducible) {
      const at::Tensor x = at::full({3, 5}, world.rank() + 1, dtype);
      world.all().all_reduce(x).wait();
      EXPECT_TRUE(at::equal(x, at::full({3, 5}, size() * (size() + 1) / 2, dtype))) << dtype;
    }
  });
}

TEST_P(GroupOf, AllReduceGivesMaximumAndMinimum) {
  testing::run_ranks(size(), [&](World& world) {
    for (const auto dtype : kReducible) {
      const at::Tensor most = at::full({4}, world.rank() - 7, dtype), least = most.clone();
      world.all().all_reduce(most, Reduce::kMax).wait();
      world.all().all_reduce(least, Reduce::kMin).wait();
      EXPECT_TRUE(at::equal(most, at::full({4}, size() - 8, dtype))) << dtype;
      EXPECT_TRUE(at::equal(least, at::full({4}, -7, dtype))) << dtype;
    }
  });
}

// 1 + 2^-9 is not a bf16 number: a sum that is rounded at every step stays at 1.
TEST_P(GroupOf, SumsOfBf16AreRoundedOnce) {
  testing::run_ranks(size(), [&](World& world) {
    const auto value = [](int64_t rank) { return rank == 0 ? 1.0 : 0.001953125; };
    double exact = 0;
    for (int64_t r = 0; r < size(); ++r) exact += value(r);
    const at::Tensor wanted = at::full({6}, exact, at::kFloat).to(at::kBFloat16);
    const at::Tensor x = at::full({6}, value(world.rank()), at::kBFloat16);
    world.all().all_reduce(x).wait();
    EXPECT_TRUE(at::equal(x, wanted));
    const at::Tensor in = at::full({6 * size()}, value(world.rank()), at::kBFloat16),
                     out = at::empty({6}, at::kBFloat16);
    world.all().reduce_scatter(out, in).wait();
    EXPECT_TRUE(at::equal(out, wanted));
  });
}

TEST_P(GroupOf, ReduceScatterGivesEachRankItsPartOfTheSum) {
  testing::run_ranks(size(), [&](World& world) {
    for (const auto dtype : kReducible) {
      const at::Tensor in = (at::arange(size(), at::kLong).repeat_interleave(300) + world.rank()).to(dtype);
      const at::Tensor out = at::empty({300}, dtype);
      world.all().reduce_scatter(out, in).wait();
      EXPECT_TRUE(at::equal(out, at::full({300}, world.rank() * size() + size() * (size() - 1) / 2, dtype))) << dtype;
    }
  });
}

// Floating-point sums depend on their order; this one is that of the ranks.
TEST_P(GroupOf, ReduceScatterSumsInTheOrderOfRanks) {
  testing::run_ranks(size(), [&](World& world) {
    const auto of_rank = [&](int64_t rank) {
      at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(rank + 1));
      return at::randn({size(), 1000}, generator);
    };
    at::Tensor wanted = of_rank(0)[world.rank()].clone();
    for (int64_t r = 1; r < size(); ++r) wanted += of_rank(r)[world.rank()];
    const at::Tensor out = at::empty({1000});
    world.all().reduce_scatter(out, of_rank(world.rank())).wait();
    EXPECT_TRUE(at::equal(out, wanted));
  });
}

TEST_P(GroupOf, ReduceScatterMayWriteToItsPartOfTheInput) {
  testing::run_ranks(size(), [&](World& world) {
    const at::Tensor in = at::ones({size(), 7});
    world.all().reduce_scatter(in[world.rank()], in).wait();
    EXPECT_TRUE(at::equal(in[world.rank()], at::full({7}, static_cast<double>(size()))));
    EXPECT_EQ(in.sum().item<double>(), 7.0 * static_cast<double>(size() - 1 + size()));
  });
}

TEST_P(GroupOf, AllGatherGivesAllPartsInTheOrderOfRanks) {
  testing::run_ranks(size(), [&](World& world) {
    for (const auto dtype : kAny) {
      const at::Tensor wanted = (at::arange(size(), at::kLong) % 2).repeat_interleave(5).to(dtype);
      const at::Tensor in = at::full({5}, world.rank() % 2, dtype), out = at::empty({size(), 5}, dtype);
      world.all().all_gather(out, in).wait();
      EXPECT_TRUE(at::equal(out.view({-1}), wanted)) << dtype;
      const at::Tensor in_place = at::zeros({size(), 5}, dtype);
      in_place[world.rank()].copy_(in);
      world.all().all_gather(in_place, in_place[world.rank()]).wait();
      EXPECT_TRUE(at::equal(in_place.view({-1}), wanted)) << dtype << " in place";
    }
  });
}

// Rank r sends r + d rows to rank d, so rank 0 sends none to itself.
TEST_P(GroupOf, AllToAllTakesADifferentNumberOfRowsForEachRank) {
  testing::run_ranks(size(), [&](World& world) {
    std::vector<int64_t> rows;
    for (int64_t r = 0; r < size(); ++r) rows.push_back(world.rank() + r);
    const std::vector<int64_t> before = rows;
    std::vector<at::Tensor> wanted;
    for (const auto dtype : kAny) {
      wanted.clear();
      for (int64_t r = 0; r < size(); ++r)
        wanted.push_back(at::full({rows[static_cast<size_t>(r)], 3, 2}, r % 2, dtype));
      const at::Tensor all = at::cat(wanted);
      const at::Tensor in = at::full(all.sizes(), world.rank() % 2, dtype), out = at::empty_like(all);
      world.all().all_to_all(out, in, rows, rows).wait();
      EXPECT_TRUE(at::equal(out, all)) << dtype;
      EXPECT_EQ(rows, before);
    }
  });
}

TEST_P(GroupOf, AllToAllTakesNoRowsAtAll) {
  testing::run_ranks(size(), [&](World& world) {
    const std::vector<int64_t> none(static_cast<size_t>(size()), 0);
    const at::Tensor in = at::empty({0, 3}), out = at::empty({0, 3});
    world.all().all_to_all(out, in, none, none).wait();
    // Rank 0 alone gets something.
    std::vector<int64_t> to = none, from = none;
    to[0] = 2;
    if (world.rank() == 0) from.assign(from.size(), 2);
    const at::Tensor sent = at::full({2, 3}, static_cast<double>(world.rank()));
    const at::Tensor got = at::empty({world.rank() == 0 ? 2 * size() : 0, 3});
    world.all().all_to_all(got, sent, from, to).wait();
    const int64_t senders = world.rank() == 0 ? size() : 0;
    EXPECT_TRUE(at::equal(got.select(1, 0), at::arange(senders).repeat_interleave(2).to(at::kFloat)));
  });
}

TEST_P(GroupOf, BroadcastGivesWhatTheRootHas) {
  testing::run_ranks(size(), [&](World& world) {
    for (const auto dtype : kAny) {
      for (int64_t root = 0; root < size(); ++root) {
        const at::Tensor x = at::full({2, 5}, world.rank() == root, dtype);
        world.all().broadcast(x, root).wait();
        EXPECT_TRUE(at::equal(x, at::ones({2, 5}, dtype))) << dtype << " of " << root;
      }
    }
  });
}

TEST_P(GroupOf, ManyCollectivesMayBeUnderWay) {
  testing::run_ranks(size(), [&](World& world) {
    std::vector<at::Tensor> tensors;
    std::vector<Work> works;
    for (int i = 0; i < 16; ++i) {
      tensors.push_back(at::full({1 << 14}, static_cast<double>(i)));
      works.push_back(world.all().all_reduce(tensors.back()));
    }
    for (int i = 0; i < 16; ++i) {
      works[static_cast<size_t>(i)].wait();
      works[static_cast<size_t>(i)].wait();  // does nothing
      EXPECT_TRUE(at::equal(tensors[static_cast<size_t>(i)], at::full({1 << 14}, static_cast<double>(i * size()))));
    }
  });
}

TEST_P(GroupOf, AWorkThatIsDroppedIsWaitedFor) {
  testing::run_ranks(size(), [&](World& world) {
    const at::Tensor x = at::ones({1000}, at::kBFloat16);
    {
      const Work dropped = world.all().all_reduce(x);
    }
    EXPECT_TRUE(at::equal(x, at::full({1000}, size(), at::kBFloat16)));
    Work work = world.all().all_reduce(x);
    work = Work();
    EXPECT_TRUE(at::equal(x, at::full({1000}, size() * size(), at::kBFloat16)));
  });
}

TEST_P(GroupOf, TakesParametersThatRequireGradients) {
  testing::run_ranks(size(), [&](World& world) {
    const at::Tensor x = at::ones({4}).requires_grad_();
    world.all().all_reduce(x).wait();
    world.all().broadcast(x, 0).wait();
    EXPECT_TRUE(at::equal(x.detach(), at::full({4}, static_cast<double>(size()))));
    EXPECT_TRUE(x.is_leaf());
  });
}

TEST_P(GroupOf, CountsTheBytesThatItSends) {
  testing::run_ranks(size(), [&](World& world) {
    Group& group = world.all();
    const auto n = static_cast<uint64_t>(size());
    group.all_reduce(at::ones({8 * size()})).wait();
    EXPECT_EQ(group.bytes_sent(Collective::kAllReduce), 2 * (n - 1) * 8 * 4);
    group.reduce_scatter(at::empty({8}, at::kBFloat16), at::ones({8 * size()}, at::kBFloat16)).wait();
    EXPECT_EQ(group.bytes_sent(Collective::kReduceScatter), (n - 1) * 8 * 2);
    group.all_gather(at::empty({8 * size()}, at::kDouble), at::ones({8}, at::kDouble)).wait();
    EXPECT_EQ(group.bytes_sent(Collective::kAllGather), (n - 1) * 8 * 8);
    const std::vector<int64_t> rows(n, 3);
    group.all_to_all(at::empty({3 * size(), 2}), at::ones({3 * size(), 2}), rows, rows).wait();
    EXPECT_EQ(group.bytes_sent(Collective::kAllToAll), (n - 1) * 3 * 2 * 4);
    group.broadcast(at::ones({5}), 0).wait();
    EXPECT_EQ(group.bytes_sent(Collective::kBroadcast), n > 1 && world.rank() == 0 ? 20u : 0u);
  });
}

// What is refused is refused before anything is sent, so the group can go on.
TEST_P(GroupOf, RefusesTensorsThatACallDoesNotTake) {
  testing::run_ranks(size(), [&](World& world) {
    Group& group = world.all();
    const int64_t n = size();
    const auto refused = [](std::initializer_list<const char*> parts, const auto& call) {
      testing::expect_error(ErrorCode::kShape, parts, call);
    };
    refused({"all_reduce", "dtype Half", "BFloat16"}, [&] { group.all_reduce(at::ones({4}, at::kHalf)); });
    refused({"all_reduce", "not contiguous"}, [&] { group.all_reduce(at::ones({4, 4}).t().slice(0, 0, 2)); });
    refused({"all_reduce", "not defined"}, [&] { group.all_reduce(at::Tensor()); });
    refused({"all_reduce", "on meta"}, [&] { group.all_reduce(at::ones({4}, at::kMeta)); });
    refused({"reduce_scatter", "has 5 elements"},
            [&] { group.reduce_scatter(at::ones({4}), at::ones({4 * n + 1}).slice(0, 0, 5).clone()); });
    refused({"reduce_scatter", "dtype Int"},
            [&] { group.reduce_scatter(at::ones({4}, at::kInt), at::ones({4 * n}, at::kInt)); });
    refused({"reduce_scatter", "'in' is Float and 'out' is Double"},
            [&] { group.reduce_scatter(at::ones({4}, at::kDouble), at::ones({4 * n})); });
    refused({"all_gather", "'out' is Long and 'in' is Float"},
            [&] { group.all_gather(at::ones({4 * n}, at::kLong), at::ones({4})); });
    refused({"all_gather", "has 3 elements"}, [&] { group.all_gather(at::ones({3}), at::ones({4})); });
    const std::vector<int64_t> ones(static_cast<size_t>(n), 1), more(static_cast<size_t>(n) + 1, 1);
    const at::Tensor rows = at::ones({n, 3});
    refused({"'in_rows' has", "wanted", "one for each rank"},
            [&] { group.all_to_all(rows, rows.clone(), ones, more); });
    refused({"'out' has shape", "add up to"}, [&] { group.all_to_all(at::ones({n + 1, 3}), rows, ones, ones); });
    refused({"rows of one shape"}, [&] { group.all_to_all(at::ones({n, 4}), rows, ones, ones); });
    refused({"one dtype"}, [&] { group.all_to_all(at::ones({n, 3}, at::kLong), rows, ones, ones); });
    std::vector<int64_t> negative(static_cast<size_t>(n), 0);
    negative.back() = -1;
    refused({"has -1 for rank"}, [&] { group.all_to_all(at::ones({0, 3}), at::ones({0, 3}), negative, negative); });
    refused({"broadcast", "the root is rank", "ranks 0 to"}, [&] { group.broadcast(at::ones({4}), n); });
    const at::Tensor x = at::ones({4});
    group.all_reduce(x).wait();
    EXPECT_EQ(x[0].item<double>(), static_cast<double>(n));
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, GroupOf, Values(1, 2, 4), [](const auto& param) { return cat("Of", param.param); });

TEST(SingleGroup, CopiesNothingThatIsInPlace) {
  const auto group = single();
  const at::Tensor x = at::ones({4}), version = x.clone();
  const auto writes = x._version();
  group->all_gather(x, x).wait();
  group->reduce_scatter(x, x.view({2, 2})).wait();
  group->all_reduce(x).wait();
  EXPECT_EQ(x._version(), writes);
  const at::Tensor out = at::empty({2, 2});
  group->reduce_scatter(out, x).wait();
  EXPECT_TRUE(at::equal(out, at::ones({2, 2})));
}

TEST(Ranks, LearnOfTheOneThatThrows) {
  const auto errors = testing::try_ranks(4, [](World& world) {
    if (world.rank() == 2) throw Error(ErrorCode::kIo, "the disk is full");
    world.all().all_reduce(at::ones({100})).wait();
  });
  EXPECT_EQ(errors[2], "the disk is full");
  for (const size_t other : {0, 1, 3}) EXPECT_EQ(errors[other], "rank 2 (a thread) ended with: the disk is full");
}

TEST(Ranks, DoNotWaitForEverForOneThatReturns) {
  const auto errors = testing::try_ranks(2,
                                         [](World& world) {
                                           if (world.rank() == 0) world.all().all_reduce(at::ones({100})).wait();
                                         },
                                         {.timeout = std::chrono::seconds(1)});
  EXPECT_THAT(errors[0], HasSubstr("waited for longer than 1000 ms"));
}

}  // namespace
}  // namespace coppice::dist
