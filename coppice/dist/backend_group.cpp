#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <atomic>
#include <functional>
#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "coppice/base/error.h"
#include "coppice/dist/backend_detail.h"
#include "coppice/dist/checks_detail.h"

namespace coppice::dist {
namespace {

constexpr std::chrono::milliseconds kPoll{200};

std::string reason_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown";
  }
}

/// Says that this rank waits, for as long as it lives.
class Waits {
 public:
  explicit Waits(Watch& watch) : watch_(watch) { watch_.waits(true); }
  ~Waits() { watch_.waits(false); }

 private:
  Watch& watch_;
};

/// How many collectives of a backend have begun and not been waited for.
using UnderWay = std::shared_ptr<std::atomic<int64_t>>;

class BackendWork final : public Work::Pending {
 public:
  BackendWork(c10::intrusive_ptr<c10d::Work> work, Waiting waiting, std::shared_ptr<Watch> watch,
              std::function<void()> finish, UnderWay under_way)
      : work_(std::move(work)),
        waiting_(waiting),
        watch_(std::move(watch)),
        finish_(std::move(finish)),
        under_way_(std::move(under_way)) {}

  void wait() override {
    watch_->check();
    if (waiting_ == Waiting::kHost) {
      const Waits waits(*watch_);
      while (!completed()) watch_->check();
    } else {
      try {
        work_->wait();
      } catch (const std::exception&) {
        watch_->broke(reason_of(std::current_exception()));
      }
    }
    --*under_way_;
    if (!finish_) return;
    const at::NoGradGuard no_grad;
    finish_();
  }

  bool is_over() override { return work_->isCompleted(); }

 private:
  /// Waits for a while. A wait that ran out and a collective that broke both throw; only the second is complete.
  bool completed() {
    try {
      work_->wait(kPoll);
      return true;
    } catch (const std::exception&) {
      if (work_->isCompleted() && !work_->isSuccess()) watch_->broke(reason_of(std::current_exception()));
      return false;
    }
  }

  c10::intrusive_ptr<c10d::Work> work_;
  const Waiting waiting_;
  const std::shared_ptr<Watch> watch_;
  const std::function<void()> finish_;
  const UnderWay under_way_;
};

/// Bytes on the host that collectives need while they are under way. They are kept for the next ones: large blocks that
/// come and go between a step's tensors would leave gaps.
class Passing {
 public:
  using Lease = std::shared_ptr<at::Tensor>;  ///< until the last copy goes

  Lease take(uint64_t bytes) {
    at::Tensor block;
    if (!free_->empty()) {
      block = std::move(free_->back());
      free_->pop_back();
    }
    if (!block.defined() || block.nbytes() < bytes) block = at::empty({static_cast<int64_t>(bytes)}, at::kByte);
    return {new at::Tensor(std::move(block)), [free = free_](at::Tensor* used) {
              free->push_back(std::move(*used));
              delete used;
            }};
  }

 private:
  std::shared_ptr<std::vector<at::Tensor>> free_ = std::make_shared<std::vector<at::Tensor>>();
};

at::Tensor flat(const at::Tensor& tensor) { return tensor.detach().view({tensor.numel()}); }
at::Tensor bytes_of(const at::Tensor& tensor) { return flat(tensor).view(at::kByte); }

c10d::ReduceOp operation(Reduce how) {
  switch (how) {
    case Reduce::kMax: return c10d::ReduceOp::MAX;
    case Reduce::kMin: return c10d::ReduceOp::MIN;
    case Reduce::kSum: break;
  }
  return c10d::ReduceOp::SUM;
}

class BackendGroup final : public Group {
 public:
  BackendGroup(c10::intrusive_ptr<c10d::Backend> backend, at::Device device, Waiting waiting,
               std::vector<int64_t> ranks, std::shared_ptr<Watch> watch)
      : backend_(std::move(backend)),
        device_(device),
        waiting_(waiting),
        ranks_(std::move(ranks)),
        watch_(std::move(watch)) {}

  // A backend waits for what is under way, and that may wait for a rank that is lost, until its time-out. Nobody here
  // needs the result, so another thread waits, or the process ends before.
  ~BackendGroup() override {
    if (*under_way_ > 0) std::thread([backend = std::move(backend_)]() mutable { backend.reset(); }).detach();
  }

  /// Ends what the device's streams wait for.
  void abort() { backend_->abort(); }

  int64_t rank() const override { return backend_->getRank(); }
  int64_t size() const override { return backend_->getSize(); }
  std::string name_of(int64_t group_rank) const override {
    return watch_->name_of(ranks_.at(static_cast<size_t>(group_rank)));
  }

  Work all_reduce(const at::Tensor& inout, Reduce how) override {
    check_tensor("all_reduce", "inout", inout, device_);
    check_reducible("all_reduce", inout);
    const at::NoGradGuard no_grad;
    const at::Tensor target = flat(inout);
    const bool rounds = inout.scalar_type() == at::kBFloat16;
    std::vector<at::Tensor> sums{rounds ? target.to(at::kFloat) : target};
    count(Collective::kAllReduce, 2 * share_of_others(sums[0].nbytes(), size()));
    c10d::AllreduceOptions options;
    options.reduceOp = operation(how);
    std::function<void()> finish;
    if (rounds) finish = [target, sum = sums[0]] { target.copy_(sum); };
    return begin([&] { return backend_->allreduce(sums, options); }, std::move(finish));
  }

  Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) override {
    check_pair("reduce_scatter", out, in);
    check_reducible("reduce_scatter", in);
    check_parts("reduce_scatter", "in", in, "out", out, size());
    const at::NoGradGuard no_grad;
    return waiting_ == Waiting::kHost ? gather_and_sum(flat(out), flat(in))
                                      : backend_reduce_scatter(flat(out), flat(in));
  }

  Work all_gather(const at::Tensor& out, const at::Tensor& in) override {
    check_pair("all_gather", out, in);
    check_parts("all_gather", "out", out, "in", in, size());
    const at::NoGradGuard no_grad;
    count(Collective::kAllGather, share_of_others(out.nbytes(), size()));
    at::Tensor to = bytes_of(out), from = bytes_of(in);
    if (waiting_ == Waiting::kHost) return send_to_all(to, from);
    return begin([&] { return backend_->_allgather_base(to, from); });
  }

  Work all_to_all(const at::Tensor& out, const at::Tensor& in, std::span<const int64_t> out_rows,
                  std::span<const int64_t> in_rows) override {
    check_pair("all_to_all", out, in);
    check_rows(out, in, out_rows, in_rows, size());
    const at::NoGradGuard no_grad;
    int64_t row_bytes = static_cast<int64_t>(in.element_size());
    for (const int64_t extent : in.sizes().slice(1)) row_bytes *= extent;
    std::vector<int64_t> to_counts(out_rows.begin(), out_rows.end()), from_counts(in_rows.begin(), in_rows.end());
    for (int64_t& rows : to_counts) rows *= row_bytes;
    for (int64_t& rows : from_counts) rows *= row_bytes;
    const uint64_t kept = static_cast<uint64_t>(from_counts[static_cast<size_t>(rank())]);
    count(Collective::kAllToAll, in.nbytes() - kept);
    return exchange(bytes_of(out), bytes_of(in), std::move(to_counts), std::move(from_counts));
  }

  bool copies() const override { return waiting_ == Waiting::kHost; }

  Work broadcast(const at::Tensor& inout, int64_t root) override {
    check_tensor("broadcast", "inout", inout, device_);
    check_root(root, size());
    const at::NoGradGuard no_grad;
    if (rank() == root) count(Collective::kBroadcast, inout.nbytes());
    std::vector<at::Tensor> bytes{bytes_of(inout)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return begin([&] { return backend_->broadcast(bytes, options); });
  }

 private:
  void check_pair(const char* call, const at::Tensor& out, const at::Tensor& in) const {
    check_tensor(call, "out", out, device_);
    check_tensor(call, "in", in, device_);
  }

  template <class Call>
  Work begin(Call call, std::function<void()> finish = {}) {
    watch_->check();
    c10::intrusive_ptr<c10d::Work> work;
    try {
      work = call();
    } catch (const std::exception&) {
      watch_->broke(reason_of(std::current_exception()));
    }
    ++*under_way_;
    if (waiting_ == Waiting::kStream) watch_->launched([work] { return work->isCompleted(); });
    return Work(std::make_unique<BackendWork>(std::move(work), waiting_, watch_, std::move(finish), under_way_));
  }

  // The backend takes the counts out of the vectors that it is given.
  Work exchange(at::Tensor out, at::Tensor in, std::vector<int64_t> out_counts, std::vector<int64_t> in_counts,
                std::function<void()> finish = {}) {
    return begin([&] { return backend_->alltoall_base(out, in, out_counts, in_counts); }, std::move(finish));
  }

  // Gloo would reduce all of it on every rank. Each part is sent to its rank and summed there instead, in the order of
  // ranks.
  Work gather_and_sum(const at::Tensor& out, const at::Tensor& in) {
    const Passing::Lease memory = passing_.take(in.nbytes());
    const at::Tensor parts =
        memory->narrow(0, 0, static_cast<int64_t>(in.nbytes())).view(in.scalar_type()).view({size(), out.numel()});
    const std::vector<int64_t> counts(static_cast<size_t>(size()), static_cast<int64_t>(out.nbytes()));
    count(Collective::kReduceScatter, share_of_others(in.nbytes(), size()));
    return exchange(bytes_of(parts), bytes_of(in), counts, counts, [out, parts, memory] {
      const bool rounds = out.scalar_type() == at::kBFloat16;
      const at::Tensor sum = rounds ? parts[0].to(at::kFloat) : parts[0];
      for (int64_t r = 1; r < parts.size(0); ++r) sum.add_(parts[r]);
      out.copy_(sum);
    });
  }

  // Gloo would make a copy of `out` anew in every call.
  Work send_to_all(const at::Tensor& out, const at::Tensor& in) {
    const Passing::Lease memory = passing_.take(out.nbytes());
    const at::Tensor copies = memory->narrow(0, 0, out.numel());
    copies.view({size(), in.numel()}).copy_(in);
    const std::vector<int64_t> counts(static_cast<size_t>(size()), in.numel());
    return exchange(out, copies, counts, counts, [memory] {});
  }

  Work backend_reduce_scatter(const at::Tensor& out, const at::Tensor& in) {
    const bool rounds = in.scalar_type() == at::kBFloat16;
    at::Tensor from = rounds ? in.to(at::kFloat) : in;
    at::Tensor to = rounds ? at::empty({out.numel()}, from.options()) : out;
    count(Collective::kReduceScatter, share_of_others(from.nbytes(), size()));
    std::function<void()> finish;
    if (rounds) finish = [out, to] { out.copy_(to); };
    return begin([&] { return backend_->_reduce_scatter_base(to, from); }, std::move(finish));
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  const at::Device device_;
  const Waiting waiting_;
  const std::vector<int64_t> ranks_;
  const std::shared_ptr<Watch> watch_;
  const UnderWay under_way_ = std::make_shared<std::atomic<int64_t>>(0);
  Passing passing_;
};

}  // namespace

std::shared_ptr<Group> make_group(c10::intrusive_ptr<c10d::Backend> backend, at::Device device, Waiting waiting,
                                  std::vector<int64_t> ranks, std::shared_ptr<Watch> watch) {
  auto group = std::make_shared<BackendGroup>(std::move(backend), device, waiting, std::move(ranks), watch);
  // What a device's stream waits for, no exception of ours ends. The watch does not own the group: it may outlive it.
  if (waiting == Waiting::kStream) {
    watch->when_lost([weak = std::weak_ptr(group)] {
      if (const auto there = weak.lock()) there->abort();
    });
  }
  return group;
}

}  // namespace coppice::dist
