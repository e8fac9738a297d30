#include "coppice/cli/dispatch.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "coppice/api/error_of.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/cli/command.h"
#include "coppice/cli/voice.h"
#include "coppice/options/options.h"

namespace coppice::cli {
namespace {

int report(ErrorCode code, const std::string& message) {
  std::cout.flush();  // so that earlier output comes before the error
  std::fflush(stdout);
  std::fputs(cat("coppice: error: ", speaker(), shown(message), "\n").c_str(), stderr);
  return exit_status(code);
}

void print_help() {
  std::cout << "coppice adds experts to Mixture-of-Experts language models and continues their training.\n\n"
               "usage: coppice COMMAND [options] ...\n\ncommands\n";
  size_t width = 0;
  for (const Command* command : commands()) width = std::max(width, command->name.size());
  for (const Command* command : commands()) {
    std::cout << "  " << command->name << std::string(width - command->name.size() + 2, ' ') << command->summary
              << "\n";
  }
  std::cout << "\n`coppice COMMAND --help` lists the options of a command, `coppice --version` prints the version.\n"
               "exit status: 0 done, 1 a check failed, 2 wrong usage, 3 bad input, 4 I/O or environment, 5 a bug in "
               "coppice\n";
}

const Command& command_of(std::string_view name) {
  std::vector<std::string> names;
  for (const Command* command : commands()) {
    if (command->name == name) return *command;
    names.emplace_back(command->name);
  }
  throw Error(ErrorCode::kUsage,
              cat("'", name, "': is not a command", suggestion(name, names), " (see `coppice --help`)"));
}

int dispatch(std::span<const std::string_view> args) {
  if (args.empty()) throw Error(ErrorCode::kUsage, "a command is missing (see `coppice --help`)");
  if (args[0] == "--help" || args[0] == "--version") {
    if (args.size() > 1) throw Error(ErrorCode::kUsage, cat("'", args[1], "': nothing may follow ", args[0]));
    if (args[0] == "--help") {
      print_help();
    } else {
      std::cout << "coppice " << version() << "\n";
    }
    return 0;
  }
  return command_of(args[0]).run(args.subspan(1));
}

}  // namespace

int run_command(std::span<const std::string_view> args) {
  try {
    return dispatch(args);
  } catch (const HelpShown&) {
    return 0;
  } catch (...) {
    const Error error = api::error_of(std::current_exception());
    return report(error.code, error.what());
  }
}

int finish_output(int status) {
  errno = 0;
  std::cout.flush();
  const bool failed = std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout;
  if (!failed) return status;
  const std::string reason = errno != 0 ? cat(": ", std::strerror(errno)) : "";
  return report(ErrorCode::kIo, cat("standard output: cannot be written", reason));
}

}  // namespace coppice::cli
