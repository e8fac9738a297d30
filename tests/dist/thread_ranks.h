#pragma once

// Ranks as threads of one process, for tests of what ranks do together.

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <latch>
#include <mutex>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/dist/world.h"
#include "coppice/dist/world_detail.h"

namespace coppice::testing {

namespace detail {

/// What the threads know of each other.
class SharedFate {
 public:
  explicit SharedFate(int64_t size) : ended(size) {}

  void fail(int64_t rank, const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (failed_ >= 0) return;
    failed_ = rank, why_ = why;
    for (const auto& stop : when_failed_) stop();
  }
  void when_failed(std::function<void()> stop) {
    const std::lock_guard lock(mutex_);
    when_failed_.push_back(std::move(stop));
  }
  /// The first rank that failed, or -1; `why` is its sentence.
  int64_t failed(std::string* why) {
    const std::lock_guard lock(mutex_);
    *why = why_;
    return failed_;
  }

  std::latch ended;

 private:
  std::mutex mutex_;
  std::vector<std::function<void()>> when_failed_;
  int64_t failed_ = -1;
  std::string why_;
};

class ThreadWatch final : public dist::Watch {
 public:
  ThreadWatch(int64_t rank, std::shared_ptr<SharedFate> fate, std::chrono::milliseconds timeout)
      : rank_(rank), fate_(std::move(fate)), timeout_(timeout) {}

  void check() override {
    std::string why;
    const int64_t failed = fate_->failed(&why);
    if (failed >= 0 && failed != rank_) throw Error(ErrorCode::kPeer, cat(name_of(failed), " ended with: ", why));
    const auto since = waits_since_.load();
    if (since != Clock::time_point{} && Clock::now() - since > timeout_) {
      throw Error(ErrorCode::kPeer, cat("rank ", rank_, " has waited for longer than ", timeout_.count(), " ms"));
    }
  }
  [[noreturn]] void broke(const std::string& reason) override {
    for (int i = 0; i < 100; ++i, std::this_thread::sleep_for(std::chrono::milliseconds(20))) check();
    throw Error(ErrorCode::kPeer, reason);
  }
  void waits(bool waiting) override { waits_since_ = waiting ? Clock::now() : Clock::time_point{}; }
  void launched(std::function<bool()>) override {}
  void when_lost(std::function<void()> stop) override { fate_->when_failed(std::move(stop)); }
  std::string name_of(int64_t rank) const override { return cat("rank ", rank, " (a thread)"); }

 private:
  using Clock = std::chrono::steady_clock;
  const int64_t rank_;
  const std::shared_ptr<SharedFate> fate_;
  const std::chrono::milliseconds timeout_;
  std::atomic<Clock::time_point> waits_since_{};
};

}  // namespace detail

/// Runs `body` as `size` ranks, each a thread. An exception of one rank reaches the others as Error{kPeer} at their
/// next collective. Returns for each rank the text that it ended with, or "".
inline std::vector<std::string> try_ranks(int64_t size, const std::function<void(dist::World&)>& body,
                                          dist::WorldSettings settings = {.timeout = std::chrono::seconds(60)}) {
  // libtorch's recorder of collectives is one for the process, and a race between ranks that are threads.
  static const int no_recorder = ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1);
  EXPECT_EQ(no_recorder, 0);
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto fate = std::make_shared<detail::SharedFate>(size);
  std::vector<std::string> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      const auto fail = [&](const std::exception& e) {
        if (!errors[static_cast<size_t>(rank)].empty()) return;
        errors[static_cast<size_t>(rank)] = e.what();
        fate->fail(rank, e.what());
      };
      try {
        dist::World world = dist::join({.store = store,
                                        .rank = rank,
                                        .size = size,
                                        .local_rank = rank,
                                        .address = "127.0.0.1",
                                        .watch = std::make_shared<detail::ThreadWatch>(rank, fate, settings.timeout)},
                                       settings);
        try {
          body(world);
        } catch (const std::exception& e) {
          fail(e);  // before the groups are dropped, which waits for what they still do
          throw;
        }
        fate->ended.arrive_and_wait();  // the others may still be receiving
      } catch (const std::exception& e) {
        fail(e);
        fate->ended.count_down();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

/// The same; fails the test with the text of every rank that threw.
inline void run_ranks(int64_t size, const std::function<void(dist::World&)>& body,
                      dist::WorldSettings settings = {.timeout = std::chrono::seconds(60)}) {
  const auto errors = try_ranks(size, body, settings);
  for (size_t rank = 0; rank < errors.size(); ++rank) {
    if (!errors[rank].empty()) ADD_FAILURE() << "rank " << rank << " of " << size << ": " << errors[rank];
  }
}

/// The world of a rank for what shares its ownership; run_ranks keeps it.
inline std::shared_ptr<dist::World> borrowed(dist::World& world) { return {std::shared_ptr<void>(), &world}; }

}  // namespace coppice::testing
