#include "coppice/kernels/sums.h"

#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

namespace coppice::kernels {
namespace {

TEST(SumOfSquares, IsTheSameForAnyNumberOfThreadsAndRight) {
  const at::Tensor values = at::randn({300001});
  at::set_num_threads(1);
  const double one = sum_of_squares(values).item<double>();
  at::set_num_threads(2);
  EXPECT_EQ(sum_of_squares(values).item<double>(), one);
  EXPECT_NEAR(one, values.to(at::kDouble).square().sum().item<double>(), 1e-9 * one);
}

TEST(ExpertDot, IsTheSameForAnyNumberOfThreadsAndRight) {
  const at::Tensor a = at::randn({5, 7, 11}), b = at::randn({5, 7, 11});
  at::set_num_threads(1);
  const auto one = expert_dot(a, b);
  at::set_num_threads(2);
  EXPECT_TRUE(expert_dot(a, b).equal(one));
  EXPECT_NEAR(one[3].item<double>(), (a[3].to(at::kDouble) * b[3].to(at::kDouble)).sum().item<double>(), 1e-9);
}

}  // namespace
}  // namespace coppice::kernels
