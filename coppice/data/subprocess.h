#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace coppice::data {

/// Runs a program to its end and returns what it printed on stdout and stderr.
///
/// Throws   Error{kIo} with its last words if it cannot be run or does not exit with 0; `advice` ends the message.
std::string run_program(const std::vector<std::string>& words, const std::filesystem::path& directory,
                        const std::string& advice);

}  // namespace coppice::data
