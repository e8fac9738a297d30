#pragma once

namespace coppice {

/// Installs handlers for SIGINT and SIGTERM that only remember the signal; called once by `main`.
/// A second signal ends the process at once.
void catch_interrupts();

/// The signal that arrived (SIGINT or SIGTERM), or 0.
int interrupt_signal();

/// Long loops call this at points where stopping leaves nothing half-done.
///
/// Throws   Error{kInterrupted} if a signal has arrived.
void check_interrupt();

}  // namespace coppice
