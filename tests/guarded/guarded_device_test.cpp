// The fake accelerator itself: what it must catch, and that its operators give the CPU's bits.
#include "tests/guarded/guarded_device.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include "tests/guarded/devices.h"

namespace coppice::guarded {
namespace {

TEST(GuardedDeviceDeathTest, TheHostCannotReadItsMemory) {
  const auto x = at::randn({4}).to(kGuarded);
  EXPECT_EXIT(printf("%f", x.const_data_ptr<float>()[0]), ::testing::KilledBySignal(SIGSEGV),
              "the host touched memory");
}

TEST(GuardedDeviceDeathTest, NobodyReadsPastTheEnd) {
  const auto x = at::randn({16}).to(kGuarded);
  EXPECT_EXIT(printf("%f", as_cpu(x).const_data_ptr<float>()[80]), ::testing::KilledBySignal(SIGSEGV), "");
}

TEST(GuardedDevice, RefusesTensorsOfTwoDevices) {
  const auto here = at::randn({4}), there = here.to(kGuarded);
  EXPECT_THROW((void)(here + there), c10::Error);
  EXPECT_THROW((void)(here.to(at::Device(at::kPrivateUse1, 1)) + there), c10::Error);
}

TEST(GuardedDevice, GivesTheBitsOfTheCpu) {
  const auto table = at::randn({11, 8}), weight = at::randn({11, 8}), ids = at::randint(11, {5}, at::kLong);
  const auto gradients = [&](at::Device device) {
    const auto w = weight.to(device).detach().requires_grad_(), t = table.to(device).detach().requires_grad_();
    const auto logits = at::linear(at::embedding(t, ids.to(device)), w);
    at::log_softmax(logits, 1).square().sum().backward();
    return std::pair(w.grad().to(at::kCPU), t.grad().to(at::kCPU));
  };
  const auto here = gradients(kCpu), there = gradients(kGuarded);
  EXPECT_TRUE(here.first.equal(there.first));
  EXPECT_TRUE(here.second.equal(there.second));
}

TEST(GuardedDevice, FreesWhatIsDropped) {
  const auto before = live_bytes();
  {
    const auto x = at::randn({1024}).to(kGuarded) * 2;
  }
  EXPECT_EQ(live_bytes(), before);
}

}  // namespace
}  // namespace coppice::guarded
