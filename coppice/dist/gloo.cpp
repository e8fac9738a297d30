// The one file that sees Gloo; gloo_shim/README.md says how.
#define USE_C10D_GLOO
#include <cstdlib>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "coppice/base/text.h"
#include "coppice/dist/backend_detail.h"

namespace coppice::dist {

c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendPlace& place) {
  auto options = c10d::ProcessGroupGloo::Options::create(place.timeout);
  if (const char* interfaces = std::getenv("GLOO_SOCKET_IFNAME"); interfaces != nullptr && *interfaces != '\0') {
    for (const std::string& name : split(interfaces, ',')) {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
    }
  } else {
    options->devices = {c10d::ProcessGroupGloo::createDeviceForHostname(place.address)};
  }
  options->group_name = place.name;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>(place.name, place.store),
                                                     static_cast<int>(place.rank), static_cast<int>(place.size),
                                                     options);
}

}  // namespace coppice::dist
