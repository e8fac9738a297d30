#include "python/bindings/watched.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coppice/base/interrupt.h"
#include "coppice/base/log.h"
#include "coppice/base/progress.h"
#include "python/bindings/text.h"

namespace coppice::python {
namespace {

namespace nb = nanobind;

constexpr auto kPause = std::chrono::milliseconds(50);

/// What the working threads have to say, until this thread passes it on.
class Mailbox {
 public:
  Mailbox() {
    set_log_sink([this](LogLevel level, std::string_view message) {
      put([&] { lines_.emplace_back(level == LogLevel::kWarning, message); });
    });
    set_progress_sink([this](const ProgressView& view) {
      put([&] { steps_ = Step{std::string(view.label), view.done, view.total, view.unit, view.last}; });
    });
  }
  ~Mailbox() {
    set_log_sink({});
    set_progress_sink({});
  }
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  void end() {
    put([&] { ended_ = true; });
  }

  /// Waits a moment, or until there is something to pass on. Returns whether the work has ended.
  bool wait() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPause, [&] { return ended_ || !lines_.empty() || steps_; });
    return ended_;
  }

  /// With the GIL.
  void pass_on(const nb::object& on_progress, const nb::object& on_log) {
    std::unique_lock lock(mutex_);
    const auto lines = std::exchange(lines_, {});
    const auto step = std::exchange(steps_, {});
    lock.unlock();
    for (const auto& [is_warning, message] : lines) on_log(is_warning, decoded(message));
    if (!step || on_progress.is_none()) return;
    const std::string_view unit = unit_text(step->unit);
    on_progress(decoded(step->label), step->done, step->total, decoded(unit), step->last);
  }

 private:
  struct Step {
    std::string label;
    uint64_t done, total;
    ProgressUnit unit;
    bool last;
  };

  template <class Change>
  void put(const Change& change) {
    {
      const std::lock_guard lock(mutex_);
      change();
    }
    changed_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<bool, std::string>> lines_;
  std::optional<Step> steps_;
  bool ended_ = false;
};

void obey_signals() {
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

/// Held while the sinks and the interrupt, of which a process has one, belong to one piece of work.
class Turn {
 public:
  Turn() {
    while (!try_take()) obey_signals();
  }
  ~Turn() { mutex().unlock(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  static std::timed_mutex& mutex() {
    static std::timed_mutex mutex;
    return mutex;
  }
  static bool try_take() {
    const nb::gil_scoped_release unlocked;
    return mutex().try_lock_for(kPause);
  }
};

/// A thread that is joined without the GIL.
class Worker {
 public:
  template <class Act>
  explicit Worker(const Act& act) : thread_(act) {}
  ~Worker() {
    const nb::gil_scoped_release unlocked;
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

 private:
  std::thread thread_;
};

}  // namespace

void run_watched(const std::function<void()>& work, const nb::object& on_progress, const nb::object& on_log) {
  const Turn turn;
  clear_interrupt();
  Mailbox mailbox;
  std::exception_ptr error;
  try {
    const Worker worker([&] {
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
      mailbox.end();
    });
    try {
      for (bool ended = false; !ended;) {
        {
          const nb::gil_scoped_release unlocked;
          ended = mailbox.wait();
        }
        mailbox.pass_on(on_progress, on_log);
        obey_signals();
      }
    } catch (...) {
      request_interrupt();
      throw;
    }
  } catch (...) {
    clear_interrupt();
    throw;
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace coppice::python
