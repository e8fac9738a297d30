#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "coppice/dist/group.h"

namespace coppice::dist {

struct WorldSettings {
  at::Device device = at::kCPU;  ///< of the data groups
  int64_t expert_parallel = 1;   ///< R: so many consecutive ranks hold all experts of a layer; divides the size
  /// A rank that others wait for so long hangs.
  std::chrono::milliseconds timeout{std::chrono::minutes(10)};
  /// A rank that says nothing for so long is lost: its process is stopped, or its host or network is down.
  std::chrono::milliseconds silence{std::chrono::seconds(8)};
  /// So long the ranks wait at the start until all have come.
  std::chrono::milliseconds patience{std::chrono::minutes(10)};
  std::string settings;  ///< a digest of what has to be the same on all ranks; compared at the start
  /// Whether SIGINT or SIGTERM ends a collective with Error{kInterrupted}, and so the other ranks too. A caller that
  /// agrees with the others on when to stop sets it to false, and sees to it that it does stop.
  bool signals_end_waits = true;
};

/// All groups of one process. It is made once, before the model.
///
/// A rank that is lost ends the others' collectives: with Error{kPeer} and a sentence such as "rank 2 (host a, process
/// 4711) is gone (killed?)", within 10 s of its death, or within the time-out if it hangs.
/// Ranks    opening and closing it is collective.
class World {
 public:
  /// Meets the others as the launcher's environment variables say (launch/launch.h); without a launcher the world is this
  /// rank alone, and no call waits or copies.
  ///
  /// Throws   Error{kUsage} if the launcher's variables, or the programs or settings of the ranks, do not fit each
  ///          other; Error{kPeer} naming the ranks that did not come; Error{kUnsupported} for tensors of a device that
  ///          this build cannot send; Error{kIo, kInterrupted}.
  static World open(const WorldSettings& settings);

  World(World&&) noexcept;
  World& operator=(World&&) = delete;
  /// Leaves, if it was not closed.
  ~World();

  /// Ends in order: waits for the others to close too.
  ///
  /// Throws   Error{kPeer}.
  void close();
  /// Tells the others why this rank ends; they end with Error{kPeer} and the sentence. Returns within seconds.
  void leave(const std::string& why) noexcept;
  /// Throws   Error{kPeer} if a rank is lost. Collectives call it; so may what computes for long between them.
  void check();

  int64_t rank() const;
  int64_t size() const;
  /// The rank among those of this host, which picks a device.
  int64_t local_rank() const;
  /// "rank 2 (host a, process 4711)".
  std::string name_of(int64_t rank) const;

  Group& control();  ///< all ranks, for host tensors (Gloo)
  Group& all();      ///< all ranks, for tensors of the model's device
  /// R consecutive ranks: together they hold all experts of a layer. Never one with the others, so that its calls need no
  /// order among theirs.
  Group& experts();
  Group& same_experts();  ///< the size / R ranks that hold the same experts as this one

 private:
  struct State;
  explicit World(std::unique_ptr<State> state);
  friend World join(const struct Seat& seat, const WorldSettings& settings);

  std::unique_ptr<State> state_;
};

/// Opens a world, runs `body` and closes it. If `body` throws, tells the others why.
void with_world(const WorldSettings& settings, const std::function<void(World&)>& body);

}  // namespace coppice::dist
