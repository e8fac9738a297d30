#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "coppice/nn/router_detail.h"

namespace coppice::nn {
namespace {

using families::GateFunction;
using families::Routing;

// What a GPU runs, on the CPU's tensors.
TEST(RouterSort, ChoosesWhatTheCpuChooses) {
  for (const auto& [groups, top_groups] : {std::pair(1, 1), std::pair(4, 1), std::pair(4, 3), std::pair(12, 5)}) {
    const Routing routing{.gate = GateFunction::kTopKSoftmax, .num_groups = groups, .top_groups = top_groups};
    const auto logits_TE = (at::randn({300, 12}) * 2).round() / 2;  // many ties
    for (const int64_t k : {1, 2, 5, 12}) {
      const auto found = detail::choose_by_sorting(logits_TE, routing, k);
      EXPECT_TRUE(at::equal(found, route(logits_TE, {}, routing, k).index_TK)) << groups << ' ' << top_groups;
    }
  }
}

TEST(RouterSort, ChoosesTheSameOnAGpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU, or a build without CUDA (preset `cuda`)";
  const Routing routing{.gate = GateFunction::kTopKSoftmax, .num_groups = 4, .top_groups = 2};
  const auto logits_TE = (at::randn({300, 64}) * 2).round() / 2;
  const auto there = route(logits_TE.to(at::kCUDA), {}, routing, 6), here = route(logits_TE, {}, routing, 6);
  EXPECT_TRUE(at::equal(there.index_TK.cpu(), here.index_TK));
  EXPECT_TRUE(there.gate_TK.cpu().allclose(here.gate_TK, 1e-5, 1e-6));
}

}  // namespace
}  // namespace coppice::nn
