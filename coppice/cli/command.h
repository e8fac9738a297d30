#pragma once

#include <span>
#include <string_view>

namespace coppice::cli {

/// One sub-command. `run` gets the arguments after its name and returns the exit status; results go to stdout,
/// everything else to stderr.
struct Command {
  std::string_view name, summary;
  int (*run)(std::span<const std::string_view> args);
};

/// All commands of this build: defined in commands_core.cpp or commands_full.cpp, which CMake chooses.
std::span<const Command* const> commands();

}  // namespace coppice::cli
