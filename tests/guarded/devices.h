#pragma once

// The devices that tests of tensors run on.

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <string>

namespace coppice::guarded {

inline const at::Device kCpu{at::kCPU};
inline const at::Device kGuarded{at::kPrivateUse1, 0};

/// Of INSTANTIATE_TEST_SUITE_P: `INSTANTIATE_TEST_SUITE_P(Devices, SUITE, guarded::both_devices(), guarded::device_name)`.
inline auto both_devices() { return ::testing::Values(kCpu, kGuarded); }
inline std::string device_name(const ::testing::TestParamInfo<at::Device>& info) {
  return info.param.is_cpu() ? "Cpu" : "Guarded";
}

}  // namespace coppice::guarded
