#pragma once

#include <memory>

#include "coppice/dist/backend_detail.h"
#include "coppice/dist/meeting_detail.h"
#include "coppice/dist/world.h"
#include "coppice/launch/launch.h"

namespace coppice::dist {

/// A rank's place among the others, once they have met at a store.
struct Seat {
  c10::intrusive_ptr<c10d::Store> store;  ///< not used where there is one rank
  int64_t rank = 0, size = 1, local_rank = 0;
  std::string address;  ///< of the network interface of this host that the others reach
  std::shared_ptr<Watch> watch;
  std::shared_ptr<class Monitor> monitor;  ///< the watch, where ranks are processes
  bool serves = false;                     ///< the store
};

/// Makes the groups of a world.
///
/// Ranks    collective: all ranks of the store.
/// Throws   Error{kUsage} if the expert groups do not fill the ranks; Error{kUnsupported} without a backend for the
///          device.
World join(const Seat& seat, const WorldSettings& settings);

/// What World::open does, with the launcher's words and the terms given.
World open_world(const launch::Launch& launch, const WorldSettings& settings, const Terms& terms);

}  // namespace coppice::dist
