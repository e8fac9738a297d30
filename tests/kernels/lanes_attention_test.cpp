// Attention in lanes is compiled for two kinds of processor; tests of attention run the one that this processor takes.
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "coppice/kernels/cpu/lanes_detail.h"

namespace coppice::kernels::cpu {
namespace {

TEST(LanesAttention, GivesTheSameBitsOnAllProcessors) {
  if (!this_processor().avx512) GTEST_SKIP() << "a processor without AVX-512";
  for (const int64_t positions : {1, 16, 45, 128}) {
    for (const int64_t dim : {16, 32}) {
      const detail::AttentionInputs in{at::randn({2, positions, 4, dim}), at::randn({2, positions, 2, dim}),
                                       at::randn({2, positions, 2, dim}), 0.25};
      const auto grad_BSHC = at::randn({2, positions, 4, dim});
      const auto old = kLanesOfAvx2.attention.forward(in), newer = kLanesOfAvx512.attention.forward(in);
      EXPECT_TRUE(newer.out_BSHC.equal(old.out_BSHC));
      EXPECT_TRUE(newer.log_sum.equal(old.log_sum));
      const auto by_old = kLanesOfAvx2.attention.backward(in, old, grad_BSHC);
      const auto by_newer = kLanesOfAvx512.attention.backward(in, old, grad_BSHC);
      EXPECT_TRUE(by_newer.query_BSHC.equal(by_old.query_BSHC));
      EXPECT_TRUE(by_newer.key_BSJC.equal(by_old.key_BSJC));
      EXPECT_TRUE(by_newer.value_BSJC.equal(by_old.value_BSJC));
    }
  }
}

}  // namespace
}  // namespace coppice::kernels::cpu
