#include "coppice/base/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <string_view>

#include "coppice/base/error.h"

namespace coppice {
namespace {

std::atomic<int> arrived = 0;
static_assert(std::atomic<int>::is_always_lock_free);  // a signal handler may write it

extern "C" void remember_signal(int signal) {
  if (arrived != 0) std::_Exit(128 + signal);
  arrived = signal;
}

// Reading a mapped file is a memory access, not a call that could return an error: if the file was truncated, or its
// disk fails, the kernel sends SIGBUS. Unfinished outputs never have their final names, so the program may print the
// reason and end here.
extern "C" void end_for_lost_page(int) {
  constexpr std::string_view kReason =
      "coppice: error: a file was truncated while it was being read, or its disk failed (do not change the files until "
      "the command has ended)\n";
  (void)!::write(STDERR_FILENO, kReason.data(), kReason.size());
  std::_Exit(exit_status(ErrorCode::kIo));
}

void handle(int signal, void (*handler)(int)) {
  // Without SA_RESTART: blocking calls return EINTR, and their callers call check_interrupt().
  struct sigaction action{};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

void catch_interrupts() {
  handle(SIGINT, remember_signal);
  handle(SIGTERM, remember_signal);
  handle(SIGPIPE, SIG_IGN);
  handle(SIGXFSZ, SIG_IGN);  // a write past the file-size limit then fails with EFBIG instead of killing the process
  handle(SIGBUS, end_for_lost_page);
}

int interrupt_signal() { return arrived; }

void request_interrupt() { arrived = SIGINT; }

void clear_interrupt() { arrived = 0; }

void check_interrupt() {
  if (arrived != 0) throw Error(ErrorCode::kInterrupted, "stopped by a signal; no output file is incomplete");
}

}  // namespace coppice
