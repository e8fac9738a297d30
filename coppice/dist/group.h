#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

namespace coppice::dist {

enum class Reduce { kSum, kMax, kMin };

/// The kinds of collectives, for counting.
enum class Collective { kAllReduce, kReduceScatter, kAllGather, kAllToAll, kBroadcast };
inline constexpr int kNumCollectives = 5;

/// Of a tensor in equal parts for `ranks` ranks, the bytes of the other ranks' parts.
inline uint64_t share_of_others(uint64_t bytes, int64_t ranks) {
  return bytes * static_cast<uint64_t>(ranks - 1) / static_cast<uint64_t>(ranks);
}

/// A collective under way. Its tensors may be neither read nor written before wait().
class Work {
 public:
  /// What is left of a collective; asked for once.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual void wait() = 0;
    virtual bool is_over() = 0;  ///< with a result or without one; wait() then does not wait
  };

  Work() = default;  ///< is done
  explicit Work(std::unique_ptr<Pending> pending) : pending_(std::move(pending)) {}
  Work(Work&&) noexcept = default;
  Work& operator=(Work&& other) noexcept;
  /// Waits and swallows what wait() throws; while an exception is under way it does not wait.
  ~Work();

  /// The result is there afterwards: on the host, or for what follows on the device's current stream. A second call
  /// does nothing.
  ///
  /// Throws   Error{kPeer} with the rank that is lost; Error{kInterrupted} at a signal (see WorldSettings).
  void wait();
  /// Whether wait() would return, or throw, at once.
  bool is_over() const { return !pending_ || pending_->is_over(); }

 private:
  std::unique_ptr<Pending> pending_;
};

/// Ranks that communicate.
///
/// Tensors are contiguous and on the group's device, and shapes and dtypes are the same on all ranks (but for the rows
/// of all_to_all).
/// Ranks    every call is collective: all ranks of the group make the same calls in the same order.
/// Threads  one at a time.
/// Throws   Error{kShape} for tensors that a call does not take, before anything is sent; Error{kPeer} as Work::wait.
class Group {
 public:
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  /// "rank 2 (host a, process 4711)": a rank of this group by its number among all ranks.
  virtual std::string name_of(int64_t group_rank) const = 0;

  /// Every rank has the sum (maximum, minimum) over ranks, with the same bits on all ranks.
  ///
  /// Dtypes   f32, f64, int64; bf16 is summed in f32 and rounded once.
  virtual Work all_reduce(const at::Tensor& inout, Reduce how = Reduce::kSum) = 0;

  /// Rank r has the sum over ranks of part r of `in`, which is as long as `out`. Host tensors are summed in the order
  /// of ranks. `out` may be part r of `in`.
  ///
  /// Dtypes   f32, f64, int64; bf16 is summed in f32 and rounded once.
  /// Memory   host tensors: one more `in`.
  virtual Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) = 0;

  /// Part r of `out` is the `in` of rank r. `in` may be this rank's part of `out`.
  ///
  /// Dtypes   any.
  /// Memory   host tensors: one more `out`.
  virtual Work all_gather(const at::Tensor& out, const at::Tensor& in) = 0;

  /// Rank r gets the next in_rows[r] rows of `in` (dimension 0); `out` is the rows that this rank gets, by the rank
  /// that sent them: out_rows[r] from rank r. Any count may be zero. `out` and `in` do not overlap.
  ///
  /// Dtypes   any.
  virtual Work all_to_all(const at::Tensor& out, const at::Tensor& in, std::span<const int64_t> out_rows,
                          std::span<const int64_t> in_rows) = 0;

  /// Every rank has what `root`, a rank of this group, has.
  ///
  /// Dtypes   any.
  virtual Work broadcast(const at::Tensor& inout, int64_t root) = 0;

  /// Whether a reduce-scatter and an all-gather hold another tensor as long as their large one while they are under way.
  virtual bool copies() const = 0;

  /// Bytes that this rank has handed to others so far, by the usual formulas for n ranks: all_reduce 2(n-1)/n of its
  /// tensor; reduce_scatter and all_gather (n-1)/n of the large tensor; all_to_all the rows for others; broadcast the
  /// tensor at the root (a backend may pass it on by other ranks, and is not asked). bf16 that is reduced in f32 counts
  /// as the dtype in which it is sent.
  ///
  /// Threads  any.
  uint64_t bytes_sent(Collective of) const { return sent_[static_cast<size_t>(of)].load(std::memory_order_relaxed); }

 protected:
  Group() = default;
  void count(Collective of, uint64_t bytes) {
    sent_[static_cast<size_t>(of)].fetch_add(bytes, std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, kNumCollectives> sent_{};
};

/// A group of this rank alone: every call is done at once. What is `in` and `out` at the same place is not copied.
/// `name` is what name_of says.
std::shared_ptr<Group> single(at::Device device = at::kCPU, std::string name = "rank 0");

}  // namespace coppice::dist
