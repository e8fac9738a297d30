#pragma once

#include <c10/core/Device.h>

#include <string>
#include <string_view>

namespace coppice::nn {

/// The device that `option` names: `auto`, or a name of libtorch (`cpu`, `cuda`, `cuda:1`). `auto` is the first GPU if
/// there is one, otherwise the CPU.
///
/// Throws   Error{kUsage} for a name that libtorch does not know, and for a device that this machine or this build does
///          not have.
at::Device compute_device(std::string_view name, std::string_view option = "device");

/// As compute_device takes it: "cpu", "cuda:0".
std::string device_name(at::Device device);

}  // namespace coppice::nn
