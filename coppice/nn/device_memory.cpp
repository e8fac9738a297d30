#include "coppice/nn/device_memory.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "coppice/base/memory.h"

namespace coppice::nn {

DeviceMemory memory_of(at::Device device) {
  if (device.is_cpu()) return {free_memory_bytes(), physical_memory_bytes()};
  const auto [free, total] = c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index());
  return {free, total};
}

}  // namespace coppice::nn
