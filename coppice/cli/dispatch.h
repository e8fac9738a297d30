#pragma once

#include <span>
#include <string_view>

namespace coppice::cli {

/// Runs the command that `args` name and returns the exit status; whatever it throws becomes one line on stderr and the
/// status that belongs to it.
int run_command(std::span<const std::string_view> args);

/// Flushes stdout. Returns `status`, or, if results could not be written (a closed pipe, a full disk), says so and
/// returns that status instead.
int finish_output(int status);

}  // namespace coppice::cli
