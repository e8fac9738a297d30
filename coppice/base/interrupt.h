#pragma once

namespace coppice {

/// Installs handlers for SIGINT and SIGTERM that record the signal and interrupt blocking system calls; `main` calls it
/// once. A second signal ends the process at once. SIGBUS (a mapped file was truncated) no bytes can be added
/// afterwards with a message and the exit status of Error{kIo}.
void catch_interrupts();

/// The signal that arrived (SIGINT or SIGTERM), or 0.
int interrupt_signal();

/// As if the signal SIGINT had arrived, for a program that handles its signals itself. Threads: any.
void request_interrupt();

/// Forgets the signal that arrived, so that the next piece of work can begin.
void clear_interrupt();

/// Throws if a signal has arrived. Long loops call it at points where no work is half done.
///
/// Throws   Error{kInterrupted} if a signal has arrived.
void check_interrupt();

}  // namespace coppice
