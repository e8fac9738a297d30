#include <map>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/dist/backends_detail.h"

namespace coppice::dist {
namespace {

std::map<c10::DeviceType, DeviceBackend>& table() {
  static std::map<c10::DeviceType, DeviceBackend> backends = [] {
    std::map<c10::DeviceType, DeviceBackend> made{{at::kCPU, {make_gloo, Waiting::kHost}}};
    if (auto backend = nccl()) made.emplace(at::kCUDA, *std::move(backend));
    return made;
  }();
  return backends;
}

}  // namespace

const DeviceBackend& backend_for(at::Device device) {
  const auto found = table().find(device.type());
  if (found == table().end()) {
    throw Error(ErrorCode::kUnsupported,
                cat("this build cannot send tensors on ", device.str(),
                    " between processes; run one process, or build with the preset 'cuda', which has NCCL"));
  }
  return found->second;
}

void set_backend(c10::DeviceType device, DeviceBackend backend) {
  table().insert_or_assign(device, std::move(backend));
}

}  // namespace coppice::dist
