// The one file that sees Gloo; gloo_shim/README.md says how.
#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "coppice/dist/backend_detail.h"

namespace coppice::dist {

c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendPlace& place) {
  auto options = c10d::ProcessGroupGloo::Options::create(place.timeout);
  options->devices = {c10d::ProcessGroupGloo::createDeviceForHostname(place.address)};
  options->group_name = place.name;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>(place.name, place.store),
                                                     static_cast<int>(place.rank), static_cast<int>(place.size),
                                                     options);
}

}  // namespace coppice::dist
