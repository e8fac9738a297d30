#include "coppice/nn/device.h"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "tests/guarded/devices.h"
#include "tests/testing/errors.h"

namespace coppice::nn {
namespace {

using testing::expect_error;

TEST(ComputeDevice, IsTheOneNamed) {
  EXPECT_EQ(compute_device("cpu"), guarded::kCpu);
  EXPECT_EQ(compute_device("cpu:0"), guarded::kCpu);
  EXPECT_EQ(compute_device("privateuseone"), guarded::kGuarded);
  EXPECT_EQ(compute_device("privateuseone:1"), at::Device(at::kPrivateUse1, 1));
  EXPECT_EQ(device_name(compute_device("privateuseone:0")), "privateuseone:0");
}

TEST(ComputeDevice, IsAGpuOrTheCpuByDefault) {
  EXPECT_EQ(compute_device("auto"), at::hasCUDA() ? at::Device(at::kCUDA, 0) : guarded::kCpu)
      << "never another accelerator that happens to be there";
}

TEST(ComputeDevice, RefusesOthersAndSaysWhatThereIs) {
  expect_error(ErrorCode::kUsage, {"train.device", "'gpu'", "auto, cpu, cuda"},
               [] { (void)compute_device("gpu", "train.device"); });
  expect_error(ErrorCode::kUsage, {"device: 'privateuseone:2'", "privateuseone:1"},
               [] { (void)compute_device("privateuseone:2"); });
  expect_error(ErrorCode::kUsage, {"'cpu:1'", "cpu:0"}, [] { (void)compute_device("cpu:1"); });
  expect_error(ErrorCode::kUsage, {"'meta'", "no meta device"}, [] { (void)compute_device("meta"); });
  expect_error(ErrorCode::kUsage, {"'xpu'", "no xpu device"}, [] { (void)compute_device("xpu"); });
  expect_error(ErrorCode::kUsage, {"''"}, [] { (void)compute_device(""); });
}

}  // namespace
}  // namespace coppice::nn
