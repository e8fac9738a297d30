#include "coppice/base/interrupt.h"

#include <csignal>
#include <cstdlib>

#include "coppice/base/error.h"

namespace coppice {
namespace {

volatile std::sig_atomic_t arrived = 0;

extern "C" void remember_signal(int signal) {
  if (arrived != 0) std::_Exit(128 + signal);
  arrived = signal;
}

}  // namespace

void catch_interrupts() {
  std::signal(SIGINT, remember_signal);
  std::signal(SIGTERM, remember_signal);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a write past the file-size limit then fails as one on a full disk does
}

int interrupt_signal() { return arrived; }

void check_interrupt() {
  if (arrived != 0) throw Error(ErrorCode::kInterrupted, "stopped by a signal; nothing was left half-written");
}

}  // namespace coppice
