#pragma once

// Where ranks meet first: at a store, under the address that the launcher gave.

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "coppice/launch/launch.h"

namespace coppice::dist {

/// What has to be the same on all ranks.
struct Terms {
  std::string program;   ///< program_identity()
  std::string settings;  ///< as the caller digests them
};

struct Meeting {
  c10::intrusive_ptr<c10d::Store> store;  ///< at rank 0, unless torchrun serves: the server
  std::string place;                      ///< "n1:29500"
  std::vector<std::string> names;         ///< "rank 2 (host a, process 4711)" by rank
  std::string address;                    ///< of this host, as the others reach it
};

/// Connects to the store; rank 0 serves it unless torchrun does. Keys begin with the number of restarts.
///
/// Throws   Error{kPeer} if nobody serves within `patience`; Error{kIo} if the port is taken; Error{kInterrupted}.
Meeting open_meeting(const launch::Launch& launch, std::chrono::milliseconds patience);

/// Waits until all ranks are there, compares their terms and fills in what the meeting tells. Rank 0 writes what the
/// monitors read.
///
/// Ranks    collective.
/// Throws   Error{kPeer} naming the ranks that have not come within `patience`; Error{kUsage} on every rank naming
///          those whose terms differ from rank 0's.
void meet(Meeting& meeting, const launch::Launch& launch, const Terms& terms, std::chrono::milliseconds patience);

}  // namespace coppice::dist
