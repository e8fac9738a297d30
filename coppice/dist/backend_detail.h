#pragma once

// Groups over torch's c10d.

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "coppice/dist/group.h"
#include "coppice/dist/watch_detail.h"

namespace coppice::dist {

/// Where a backend is made: collective over the ranks that make it under one name.
struct BackendPlace {
  c10::intrusive_ptr<c10d::Store> store;
  std::string name;  ///< of the group; the same on all its ranks, and of no other group
  int64_t rank = 0, size = 1;
  std::string address;                ///< of the network interface of this host
  std::chrono::milliseconds timeout;  ///< of one collective, after which the backend itself gives up
};

/// Gloo, for host tensors. The environment variable GLOO_SOCKET_IFNAME, if set, names the network interface (or
/// several, with commas) in place of the address.
c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendPlace& place);

/// How a backend's collectives are waited for.
enum class Waiting {
  kHost,    ///< the host waits, 200 ms at a time
  kStream,  ///< the device's current stream waits
};

/// A group over a c10d backend.
///
/// `ranks[i]` is the number among all ranks of the group's rank i.
std::shared_ptr<Group> make_group(c10::intrusive_ptr<c10d::Backend> backend, at::Device device, Waiting waiting,
                                  std::vector<int64_t> ranks, std::shared_ptr<Watch> watch);

}  // namespace coppice::dist
