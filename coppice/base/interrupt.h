#pragma once

namespace coppice {

/// Installs handlers for SIGINT and SIGTERM that only remember the signal and end the system call that waits; called
/// once by `main`. A second signal ends the process at once. A page of a mapped file that is gone (SIGBUS) ends it with
/// a message and the status of Error{kIo}.
void catch_interrupts();

/// The signal that arrived (SIGINT or SIGTERM), or 0.
int interrupt_signal();

/// Long loops call this at points where stopping leaves nothing half-done.
///
/// Throws   Error{kInterrupted} if a signal has arrived.
void check_interrupt();

}  // namespace coppice
