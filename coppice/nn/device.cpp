#include "coppice/nn/device.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::nn {
namespace {

constexpr std::string_view kWanted = "wanted auto, cpu, cuda or cuda:N";

/// How many devices of this kind this process can use.
int count_of(c10::DeviceType kind) {
  if (kind == at::kCPU) return 1;
  // Others, as `meta`, have no memory to compute in.
  if (!at::isAccelerator(kind) || !c10::impl::hasDeviceGuardImpl(kind)) return 0;
  return c10::impl::getDeviceGuardImpl(kind)->deviceCount();
}

at::Device parse(std::string_view name, std::string_view option) {
  try {
    return at::Device(std::string(name));
  } catch (const c10::Error&) {
    throw Error(ErrorCode::kUsage, cat(option, ": '", name, "' is unknown; ", kWanted));
  }
}

}  // namespace

at::Device compute_device(std::string_view name, std::string_view option) {
  if (name == "auto") return count_of(at::kCUDA) > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  const at::Device device = parse(name, option);
  const int count = count_of(device.type()), index = std::max<int>(device.index(), 0);
  if (index >= count) {
    const std::string kind = c10::DeviceTypeName(device.type(), /*lower_case=*/true);
    const std::string found = count == 0 ? cat("there is no ", kind, " device that this build can use")
                                         : cat("the last one is ", kind, ":", count - 1);
    throw Error(ErrorCode::kUsage, cat(option, ": '", name, "': ", found, "; ", kWanted,
                                       " (use auto, which takes a GPU where there is one)"));
  }
  return device.is_cpu() ? at::Device(at::kCPU) : at::Device(device.type(), static_cast<c10::DeviceIndex>(index));
}

std::string device_name(at::Device device) { return device.str(); }

}  // namespace coppice::nn
