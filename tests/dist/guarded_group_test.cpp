// The collectives of the guarded device give the CPU's results, after wait() and not before.
#include <ATen/ATen.h>

#include "tests/dist/thread_ranks.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/staged_backend.h"

namespace coppice::dist {
namespace {

class GuardedGroupOf : public ::testing::TestWithParam<int64_t> {
 protected:
  static void SetUpTestSuite() { guarded::install_staged_backend(); }

  int64_t size() const { return GetParam(); }

  void run(const std::function<void(World&)>& body) const {
    testing::run_ranks(size(), body, {.device = guarded::kGuarded, .timeout = std::chrono::seconds(60)});
  }

  /// Before wait() `out` is all NaN (where there are others); afterwards it is `wanted`.
  void expect_after_wait(Work work, const at::Tensor& out, const at::Tensor& wanted) const {
    const bool waits = size() > 1 && out.numel() > 0 && out.is_floating_point() && out.scalar_type() != at::kBFloat16;
    if (waits) {
      EXPECT_TRUE(out.cpu().isnan().all().item<bool>());
    }
    work.wait();
    EXPECT_TRUE(at::equal(out.cpu(), wanted)) << out.scalar_type();
  }
};

at::Tensor on_device(const at::Tensor& tensor) { return tensor.to(guarded::kGuarded); }

TEST_P(GuardedGroupOf, ReducesAndGathers) {
  run([&](World& world) {
    for (const auto dtype : {at::kFloat, at::kDouble, at::kLong, at::kBFloat16}) {
      const at::Tensor x = on_device(at::full({6}, world.rank() + 1, dtype));
      expect_after_wait(world.all().all_reduce(x), x, at::full({6}, size() * (size() + 1) / 2, dtype));
      const at::Tensor in = on_device(at::full({6 * size()}, world.rank() + 1, dtype));
      const at::Tensor part = on_device(at::zeros({6}, dtype));
      if (size() > 1) {
        expect_after_wait(world.all().reduce_scatter(part, in), part, at::full({6}, size() * (size() + 1) / 2, dtype));
      }
      const at::Tensor all = on_device(at::zeros({size(), 6}, dtype));
      all[world.rank()].fill_(world.rank());
      const at::Tensor wanted = at::arange(size()).unsqueeze(1).expand({size(), 6}).to(dtype);
      expect_after_wait(world.all().all_gather(all, all[world.rank()]), all, wanted);
      const at::Tensor sent = on_device(at::full({6}, world.rank() + 1, dtype));
      expect_after_wait(world.all().broadcast(sent, size() - 1), sent, at::full({6}, size(), dtype));
    }
  });
}

TEST_P(GuardedGroupOf, ExchangesRows) {
  run([&](World& world) {
    for (const auto dtype : {at::kFloat, at::kLong, at::kBFloat16}) {
      std::vector<int64_t> rows;
      std::vector<at::Tensor> wanted;
      for (int64_t r = 0; r < size(); ++r) {
        rows.push_back(world.rank() + r);
        wanted.push_back(at::full({world.rank() + r, 3}, r, dtype));
      }
      const at::Tensor all = at::cat(wanted);
      const at::Tensor in = on_device(at::full(all.sizes(), world.rank(), dtype)), out = on_device(at::zeros_like(all));
      expect_after_wait(world.all().all_to_all(out, in, rows, rows), out, all);
    }
  });
}

TEST_P(GuardedGroupOf, KeepsTheControlGroupOnTheHost) {
  run([&](World& world) {
    const at::Tensor x = at::ones({4});
    world.control().all_reduce(x).wait();
    EXPECT_EQ(x[0].item<double>(), static_cast<double>(size()));
    EXPECT_THROW(world.all().all_reduce(x), Error);
    EXPECT_THROW(world.control().all_reduce(on_device(x)), Error);
  });
}

TEST_P(GuardedGroupOf, LearnsOfTheOneThatThrows) {
  const auto errors = testing::try_ranks(size(),
                                         [](World& world) {
                                           const at::Tensor x = on_device(at::ones({100}));
                                           world.all().all_reduce(x).wait();
                                           if (world.rank() == 0) throw Error(ErrorCode::kIo, "the disk is full");
                                           world.all().all_reduce(x).wait();
                                         },
                                         {.device = guarded::kGuarded, .timeout = std::chrono::seconds(60)});
  EXPECT_EQ(errors[0], "the disk is full");
  for (size_t r = 1; r < errors.size(); ++r) EXPECT_EQ(errors[r], "rank 0 (a thread) ended with: the disk is full");
}

INSTANTIATE_TEST_SUITE_P(Ranks, GuardedGroupOf, ::testing::Values(1, 2, 4),
                         [](const auto& param) { return cat("Of", param.param); });

}  // namespace
}  // namespace coppice::dist
