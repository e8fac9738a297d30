// A decoder over ranks on a device, whose collectives leave NaN until they are waited for. Forward passes only: ranks
// that are threads share autograd's thread of the device, in which one would wait for the other.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "coppice/dist/world.h"
#include "coppice/nn/decoder.h"
#include "coppice/nn/host.h"
#include "tests/dist/thread_ranks.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/staged_backend.h"
#include "tests/nn/tiny_decoders.h"
#include "tests/testing/temp_dir.h"

namespace coppice::nn {
namespace {

using guarded::kGuarded;
using testing::TempDir;

class DividedOnADevice : public ::testing::TestWithParam<std::string_view> {
 protected:
  static void SetUpTestSuite() { guarded::install_staged_backend(); }
};

INSTANTIATE_TEST_SUITE_P(Families, DividedOnADevice, ::testing::Values("mixtral", "glm4_moe", "gpt_oss"),
                         [](const auto& param_info) { return std::string(param_info.param); });

TEST_P(DividedOnADevice, ComputesWhatOneRankOfTheCpuComputes) {
  at::set_num_threads(1);
  const TempDir dir;
  const auto source =
      families::open_model(testing::tiny_model(dir / "m", GetParam(), {.sizes = sizes_of(GetParam()), .std = 0.2}));
  at::manual_seed(6);
  const auto tokens_BS = at::randint(0, kSizes.vocab_size, {2, 12}, at::kLong);
  const at::NoGradGuard no_grad;
  std::vector<LayerRouting> wanted_routing;
  const ForwardOptions options{.with_output_sq = true};
  const auto wanted = Decoder::load(source, ComputeDtype::kF32).logits(tokens_BS, options, &wanted_routing);
  testing::run_ranks(
      2,
      [&](dist::World& world) {
        at::set_num_threads(1);
        const at::NoGradGuard none;
        const auto borrowed = testing::borrowed(world);
        const auto decoder = Decoder::load(source, ComputeDtype::kF32, kGuarded, divide(borrowed, source.config));
        std::vector<LayerRouting> routing;
        const auto found =
            on_host(decoder.logits(tokens_BS.narrow(0, world.rank(), 1).contiguous(), options, &routing));
        EXPECT_TRUE(found.allclose(wanted.narrow(0, world.rank(), 1), 1e-4, 1e-5));
        ASSERT_EQ(routing.size(), wanted_routing.size());
        for (size_t i = 0; i < routing.size(); ++i) {
          const auto all = wanted_routing[i].pair_sq_TK;
          const auto mine = all.narrow(0, 12 * world.rank(), 12);
          EXPECT_TRUE(on_host(routing[i].pair_sq_TK).allclose(mine, 1e-4, 1e-5));
        }
      },
      {.device = kGuarded, .expert_parallel = 2, .timeout = std::chrono::seconds(60)});
}

}  // namespace
}  // namespace coppice::nn
