#include "tests/guarded/staged_backend.h"

#include <ATen/ATen.h>

#include <atomic>
#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "coppice/dist/backends_detail.h"
#include "tests/guarded/guarded_device.h"

namespace coppice::guarded {
namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

/// Whether the backend was told to give up.
using Aborted = std::shared_ptr<std::atomic<bool>>;

/// A collective on `host`, whose result becomes that of `device` when it is waited for.
class StagedWork final : public c10d::Work {
 public:
  StagedWork(WorkPtr inner, at::Tensor device, at::Tensor host, Aborted aborted)
      : inner_(std::move(inner)), device_(std::move(device)), host_(std::move(host)), aborted_(std::move(aborted)) {}

  bool isCompleted() override { return inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  bool wait(std::chrono::milliseconds) override {
    while (!inner_->isCompleted()) {
      if (*aborted_) throw std::runtime_error("aborted");
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    const bool done = inner_->wait();
    as_cpu(device_).copy_(host_);
    return done;
  }

 private:
  const WorkPtr inner_;
  const at::Tensor device_, host_;
  const Aborted aborted_;
};

/// The bytes of `out`, which nobody may read before wait().
at::Tensor spoilt(const at::Tensor& out) {
  auto bytes = as_cpu(out).view({out.numel()}).view(at::kByte);
  bytes.fill_(0xFF);
  return out;
}

at::Tensor host_like(const at::Tensor& tensor) { return at::empty(tensor.sizes(), tensor.options().device(at::kCPU)); }

class StagedBackend final : public c10d::Backend {
 public:
  explicit StagedBackend(BackendPtr host) : Backend(host->getRank(), host->getSize()), host_(std::move(host)) {}

  const std::string getBackendName() const override { return "staged"; }
  void abort() override { *aborted_ = true; }

  WorkPtr allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    std::vector<at::Tensor> copies{as_cpu(tensors[0]).clone()};
    return staged(tensors[0], copies[0], [&] { return host_->allreduce(copies, options); });
  }

  WorkPtr broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    std::vector<at::Tensor> copies{as_cpu(tensors[0]).clone()};
    return staged(tensors[0], copies[0], [&] { return host_->broadcast(copies, options); });
  }

  WorkPtr _allgather_base(at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions& options) override {
    at::Tensor from = as_cpu(in).clone(), to = host_like(out);
    return staged(out, to, [&] { return host_->_allgather_base(to, from, options); });
  }

  // Of Gloo's own the work does not say whether it is over.
  WorkPtr _reduce_scatter_base(at::Tensor& out, at::Tensor& in, const c10d::ReduceScatterOptions&) override {
    std::vector<at::Tensor> copies{as_cpu(in).clone()};
    const at::Tensor part = copies[0].view({getSize(), out.numel()})[getRank()];
    return staged(out, part, [&] { return host_->allreduce(copies); });
  }

  WorkPtr alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_counts,
                        std::vector<int64_t>& in_counts, const c10d::AllToAllOptions& options) override {
    at::Tensor from = as_cpu(in).clone(), to = host_like(out);
    return staged(out, to, [&] { return host_->alltoall_base(to, from, out_counts, in_counts, options); });
  }

 private:
  template <class Call>
  WorkPtr staged(const at::Tensor& device, const at::Tensor& host, Call call) {
    const at::Tensor out = spoilt(device);
    return c10::make_intrusive<StagedWork>(call(), out, host, aborted_);
  }

  const BackendPtr host_;
  const Aborted aborted_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace

void install_staged_backend() {
  const auto make = [](const dist::BackendPlace& place) -> BackendPtr {
    return c10::make_intrusive<StagedBackend>(dist::make_gloo(place));
  };
  // As NCCL's collectives, these are not polled by the host.
  dist::set_backend(at::kPrivateUse1, {make, dist::Waiting::kStream});
}

}  // namespace coppice::guarded
