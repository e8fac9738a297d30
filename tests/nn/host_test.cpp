#include "coppice/nn/host.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "tests/guarded/devices.h"
#include "tests/guarded/guarded_device.h"
#include "tests/testing/errors.h"

namespace coppice::nn {
namespace {

class Host : public ::testing::TestWithParam<at::Device> {};
INSTANTIATE_TEST_SUITE_P(Devices, Host, guarded::both_devices(), guarded::device_name);

TEST_P(Host, SendsValuesAndGetsThemBack) {
  const std::vector<int64_t> values{5, -1, 7, 9, 2, 4};
  const auto there = from_host<int64_t>(values, {2, 3}, GetParam());
  EXPECT_EQ(there.device(), GetParam());
  EXPECT_EQ(to_host<int64_t>(there), values);
  EXPECT_EQ(to_host<int64_t>(there.t()), (std::vector<int64_t>{5, 9, -1, 2, 7, 4}))
      << "row-major, whatever the strides";
  EXPECT_EQ(number(there[1][2]), 4.0);
}

TEST_P(Host, FillsAnyViewInItsOwnOrder) {
  const auto whole = at::zeros({2, 3}, at::TensorOptions().dtype(at::kFloat).device(GetParam()));
  fill_from_host(whole.t(), [](std::span<float> values) { std::iota(values.begin(), values.end(), 1.0f); });
  EXPECT_EQ(to_host<float>(whole), (std::vector<float>{1, 3, 5, 2, 4, 6}));
}

TEST_P(Host, GetsManyTensorsInOneTransfer) {
  const auto device = at::TensorOptions().device(GetParam());
  const std::vector<at::Tensor> there{
      at::full({}, 0.1, device.dtype(at::kDouble)), at::arange(6, device.dtype(at::kLong)).view({2, 3}).t(),
      at::zeros({0}, device.dtype(at::kLong)), at::full({2}, int64_t{1} << 62, device.dtype(at::kLong))};
  const long before = guarded::counters().copies_to_host;
  const auto here = on_host_together(there);
  EXPECT_EQ(guarded::counters().copies_to_host - before, GetParam().is_cpu() ? 0 : 1);
  ASSERT_EQ(here.size(), there.size());
  for (size_t i = 0; i < here.size(); ++i) {
    EXPECT_TRUE(here[i].is_cpu());
    EXPECT_TRUE(at::equal(here[i], there[i].cpu())) << i;
  }
}

TEST_P(Host, CopiesAsAnotherDtype) {
  const auto there = at::full({3}, 1.5, at::TensorOptions().dtype(at::kBFloat16).device(GetParam()));
  const auto here = host_copy(there, at::kFloat);
  there.zero_();
  EXPECT_EQ(to_host<float>(here), (std::vector<float>{1.5, 1.5, 1.5})) << "a copy, also on the CPU";
  EXPECT_EQ(here.is_pinned(), !GetParam().is_cpu());
}

TEST(HostValues, AreOnlyThoseOfTheHost) {
  const auto there = at::zeros({4}, at::TensorOptions().dtype(at::kFloat).device(guarded::kGuarded));
  testing::expect_error(ErrorCode::kInternal, {"privateuseone:0"}, [&] { (void)host_values<float>(there); });
  testing::expect_error(ErrorCode::kInternal, {"not contiguous"},
                        [] { (void)host_values<float>(at::zeros({4, 2}).t()); });
}

}  // namespace
}  // namespace coppice::nn
