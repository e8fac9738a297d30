#pragma once

#include <functional>

#include "coppice/dist/backend_detail.h"

namespace coppice::dist {

/// What carries the tensors of a kind of device between ranks.
struct DeviceBackend {
  std::function<c10::intrusive_ptr<c10d::Backend>(const BackendPlace&)> make;
  Waiting waiting = Waiting::kHost;
};

/// Throws   Error{kUnsupported} if this build has none for the device.
const DeviceBackend& backend_for(at::Device device);

/// Adds or replaces a backend; for devices that only tests have.
///
/// Threads  one, before any world is made.
void set_backend(c10::DeviceType device, DeviceBackend backend);

/// NCCL, for CUDA tensors; in a build without it there is none. A build has either nccl.cpp or no_nccl.cpp.
std::optional<DeviceBackend> nccl();

}  // namespace coppice::dist
