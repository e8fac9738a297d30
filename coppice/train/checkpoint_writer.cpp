#include "coppice/train/checkpoint_writer.h"

#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/parallel.h"
#include "coppice/nn/host.h"

namespace coppice::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A copy of the state on the host to write a checkpoint from, while training continues with the model.
struct Snapshot {
  nn::Decoder model;
  step::Optimizer optimizer;
};

Snapshot snapshot_of(const nn::Decoder& model, const step::Optimizer& optimizer) {
  const at::NoGradGuard no_grad;
  Snapshot out{model, optimizer};
  for (nn::Parameter& p : out.model.parameters()) {
    p.value = at::Tensor();
    p.master = nn::host_copy(p.master, at::kFloat);
  }
  for (auto& [layer, bias] : out.model.selection_bias()) bias = nn::host_copy(bias, at::kFloat);
  for (step::ParameterState& state : out.optimizer.states()) {
    state.exp_avg = nn::host_copy(state.exp_avg, at::kFloat);
    state.exp_avg_sq = nn::host_copy(state.exp_avg_sq, at::kFloat);
    state.grad = state.sum = at::Tensor();
  }
  return out;
}

}  // namespace

void CheckpointWriter::write(const std::filesystem::path& target, const nn::Decoder& model,
                             const step::Optimizer& optimizer, const TrainerState& state, const Companions& companions,
                             bool background) {
  COPPICE_CHECK(!begun_, "finished() was not called for the checkpoint before");
  start_ = Clock::now();
  begun_ = Written{.path = target, .step = state.position.step};
  if (!background) {
    write_checkpoint(target, model, optimizer, state, companions);
    std::promise<double> done;
    done.set_value(begun_->blocked_seconds = seconds_since(start_));
    writing_ = done.get_future();
    return;
  }
  writing_ =
      std::async(std::launch::async, [target, copy = snapshot_of(model, optimizer), state, companions, start = start_] {
        kernels::use_one_thread_here();
        write_checkpoint(target, copy.model, copy.optimizer, state, companions);
        return seconds_since(start);
      });
  begun_->blocked_seconds = seconds_since(start_);
}

std::optional<CheckpointWriter::Written> CheckpointWriter::finished(bool wait) {
  if (!begun_) return std::nullopt;
  if (!wait && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return std::nullopt;
  auto written = std::exchange(begun_, std::nullopt);
  written->seconds = writing_.get();
  return written;
}

}  // namespace coppice::train
