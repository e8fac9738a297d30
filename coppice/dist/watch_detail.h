#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace coppice::dist {

/// What a rank knows of the others while it waits for them.
///
/// Threads  any.
class Watch {
 public:
  virtual ~Watch() = default;

  /// Throws   Error{kPeer} once a rank is lost; Error{kInterrupted} at a signal.
  virtual void check() = 0;
  /// A collective of this rank broke with `reason`: finds out which rank is the cause, which may take seconds.
  ///
  /// Throws   Error{kPeer}, always.
  [[noreturn]] virtual void broke(const std::string& reason) = 0;
  /// This rank begins or ends to wait for others.
  virtual void waits(bool waiting) = 0;
  /// This rank has begun a collective that its host does not wait for; `completed` says whether it is over.
  virtual void launched(std::function<bool()> completed) = 0;
  /// `stop` is called once a rank is lost, by another thread; it ends such collectives.
  virtual void when_lost(std::function<void()> stop) = 0;
  /// "rank 2 (host a, process 4711)".
  virtual std::string name_of(int64_t rank) const = 0;
};

}  // namespace coppice::dist
