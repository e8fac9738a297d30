#pragma once

#include <span>
#include <string_view>

namespace coppice::cli {

/// Runs the command that `args` name and returns the exit status; an exception becomes one line on stderr and its exit
/// status.
int run_command(std::span<const std::string_view> args);

/// Flushes stdout. Returns `status`, or, if results could not be written (a closed pipe, a full disk), prints an error
/// and returns the exit status of that error.
int finish_output(int status);

}  // namespace coppice::cli
