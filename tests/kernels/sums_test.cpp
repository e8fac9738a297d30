#include "coppice/kernels/sums.h"

#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/guarded/devices.h"

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

TEST(SumOfSquares, OnAnotherDeviceStaysThereAndIsTheSameToRounding) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor values = at::randn({70001}).to(dtype);
    const auto there = sum_of_squares(values.to(guarded::kGuarded));
    EXPECT_EQ(there.device(), guarded::kGuarded);
    EXPECT_EQ(there.scalar_type(), at::kDouble);
    EXPECT_TRUE(there.to(at::kCPU).allclose(sum_of_squares(values), 1e-13));
  }
}

TEST(SumOfSquares, OfSeveralTensorsIsTheSumOfTheirSumsToTheBit) {
  std::vector<at::Tensor> values;
  for (const int64_t size : {3, 0, 200'000, 65'536, 1, 40'000}) {
    values.push_back(at::randn({size}).to(size == 3 ? at::kBFloat16 : at::kFloat));
  }
  for (const at::Device device : {guarded::kCpu, guarded::kGuarded}) {
    double sum = 0;
    for (auto& one : values) {
      one = one.to(device);
      sum += sum_of_squares(one).item<double>();
    }
    EXPECT_EQ(sum_of_squares(values).item<double>(), sum);
  }
}

TEST(SumOfSquares, OfNothingIsZero) {
  for (const at::Device device : {guarded::kCpu, guarded::kGuarded}) {
    EXPECT_EQ(sum_of_squares(at::randn({0}).to(device)).item<double>(), 0.0);
  }
}

TEST(ExpertDot, OnAnotherDeviceStaysThereAndIsTheSameToRounding) {
  const at::Tensor a = at::randn({5, 7, 11}), b = at::randn({5, 7, 11});
  const auto there = expert_dot(a.to(guarded::kGuarded), b.to(guarded::kGuarded));
  EXPECT_EQ(there.device(), guarded::kGuarded);
  EXPECT_TRUE(there.to(at::kCPU).allclose(expert_dot(a, b), 1e-12, 1e-12));
}

}  // namespace
}  // namespace coppice::kernels
