#include "coppice/base/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string_view>

#include "coppice/base/error.h"

namespace coppice {
namespace {

volatile std::sig_atomic_t arrived = 0;

extern "C" void remember_signal(int signal) {
  if (arrived != 0) std::_Exit(128 + signal);
  arrived = signal;
}

// Mapped files are read without a call that could fail: where one has become shorter, or its disk fails, the kernel
// sends this signal. No unfinished output has its final name, so the program can end here and say why.
extern "C" void end_for_lost_page(int) {
  constexpr std::string_view kReason =
      "coppice: error: a file that is being read has become shorter, or its disk failed (leave the files alone until "
      "this is done)\n";
  (void)!::write(STDERR_FILENO, kReason.data(), kReason.size());
  std::_Exit(exit_status(ErrorCode::kIo));
}

void handle(int signal, void (*handler)(int)) {
  struct sigaction action{};  // without SA_RESTART: a wait ends with EINTR, and whoever waits calls check_interrupt()
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

void catch_interrupts() {
  handle(SIGINT, remember_signal);
  handle(SIGTERM, remember_signal);
  handle(SIGPIPE, SIG_IGN);
  handle(SIGXFSZ, SIG_IGN);  // a write past the file-size limit then fails as one on a full disk does
  handle(SIGBUS, end_for_lost_page);
}

int interrupt_signal() { return arrived; }

void check_interrupt() {
  if (arrived != 0) throw Error(ErrorCode::kInterrupted, "stopped by a signal; nothing was left half-written");
}

}  // namespace coppice
