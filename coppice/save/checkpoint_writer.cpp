#include "coppice/save/checkpoint_writer.h"

#include <array>
#include <functional>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/parallel.h"

namespace coppice::save {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

void CheckpointWriter::write(const std::filesystem::path& target, const nn::Decoder& model,
                             const step::Optimizer& optimizer, const TrainerState& state, const Companions& companions,
                             bool background) {
  COPPICE_CHECK(!begun_, "finished() was not called for the checkpoint before");
  start_ = Clock::now();
  begun_ = Written{.path = target, .step = state.position.step};
  division_ = model.division();
  std::function<void()> write;
  if (division_.world) {
    shared_ = std::make_shared<SharedCheckpoint>(target, model, optimizer, state, companions);
    write = [shared = shared_] { shared->write(); };
  } else {
    auto saved =
        std::make_shared<const SavedState>(saved_state(model, optimizer, background ? Copies::kCopy : Copies::kView));
    write = [target, saved, state, companions] { write_checkpoint(target, *saved, state, companions); };
  }
  std::packaged_task<double()> task([write = std::move(write), start = start_] {
    write();
    return seconds_since(start);
  });
  writing_ = task.get_future();
  if (background) {
    thread_ = std::jthread([task = std::move(task)]() mutable {
      kernels::use_one_thread_here();
      task();
    });
  } else {
    task();
  }
  begun_->blocked_seconds = seconds_since(start_);
}

bool CheckpointWriter::is_ready(bool wait) const {
  if (wait) writing_.wait();
  const bool here = writing_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  std::array<int64_t, 1> ready{here ? 1 : 0};
  division_.sum_over_ranks(ready);
  return ready.front() == division_.num_ranks();
}

std::optional<CheckpointWriter::Written> CheckpointWriter::finished(bool wait) {
  if (!begun_ || !is_ready(wait)) return std::nullopt;
  auto written = std::exchange(begun_, std::nullopt);
  const auto shared = std::exchange(shared_, nullptr);
  if (!shared) {
    written->seconds = writing_.get();
    return written;
  }
  std::exception_ptr own;
  try {
    (void)writing_.get();
  } catch (...) {
    own = std::current_exception();
  }
  shared->commit(own);
  written->seconds = seconds_since(start_);
  return written;
}

}  // namespace coppice::save
