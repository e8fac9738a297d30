#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace coppice::nn {

/// Bytes of memory that tensors of a device may lie in.
struct DeviceMemory {
  uint64_t free = 0;  ///< that nobody uses now
  uint64_t total = 0;
};

/// That of the machine for the CPU, and a GPU's own.
DeviceMemory memory_of(at::Device device);

}  // namespace coppice::nn
