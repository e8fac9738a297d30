#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "coppice/dist/judge_detail.h"
#include "coppice/dist/watch_detail.h"

namespace coppice::dist {

struct MonitorSettings {
  int64_t rank = 0;
  std::string meeting;             ///< "n1:29500", for messages
  bool rank_0_serves = true;       ///< the rendezvous; else torchrun does
  std::vector<std::string> names;  ///< "rank 2 (host a, process 4711)"
  JudgeLimits limits;
  bool signals_end_waits = true;
};

/// A thread by which the ranks learn that one of them is lost.
///
/// Each rank writes its state to the store every 200 ms (less often where there are more than 256 ranks). Rank 0 reads
/// them all, judges, and writes the verdict, which each rank reads with rank 0's state: two small requests a beat. The
/// first verdict stands. If rank 0 is lost while the store is not, every rank judges it.
class Monitor final : public Watch {
 public:
  /// Ranks    collective: all have called `prepare` before, or rank 0 has and the others know it.
  /// `store` is a connection of the monitor's own: a store serialises its calls.
  Monitor(c10::intrusive_ptr<c10d::Store> store, MonitorSettings settings);
  ~Monitor() override;

  /// Rank 0 writes what the monitors read.
  static void prepare(c10d::Store& store, int64_t size);

  void check() override;
  [[noreturn]] void broke(const std::string& reason) override;
  void waits(bool waiting) override;
  void launched(std::function<bool()> completed) override;
  void when_lost(std::function<void()> stop) override;
  std::string name_of(int64_t rank) const override;

  /// Tells the others that this rank ends with an error, unless it ends because of theirs. Returns when the verdict is
  /// written, after 2 s at most.
  void leave(const std::string& why);
  /// This rank has come to its end. Returns when all have.
  ///
  /// Throws   as check().
  void finish();
  /// Returns when all others know how the run ends, or are gone; after `most` at most. What serves the store waits so.
  void wait_for_others(std::chrono::milliseconds most);

 private:
  struct Shared;
  const std::shared_ptr<Shared> shared_;  // the thread may outlive the monitor, in a request that nobody answers
};

}  // namespace coppice::dist
