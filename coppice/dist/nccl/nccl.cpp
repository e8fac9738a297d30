// The one file that sees NCCL; it needs CUDA's headers too.
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "coppice/dist/backends_detail.h"

namespace coppice::dist {
namespace {

c10::intrusive_ptr<c10d::Backend> make_nccl(const BackendPlace& place) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = place.timeout;
  options->group_name = place.name;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>(place.name, place.store),
                                                     static_cast<int>(place.rank), static_cast<int>(place.size),
                                                     options);
}

}  // namespace

std::optional<DeviceBackend> nccl() { return DeviceBackend{make_nccl, Waiting::kStream}; }

}  // namespace coppice::dist
