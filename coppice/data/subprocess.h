#pragma once

#include <sys/types.h>

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace coppice::data {

/// A program that runs beside us.
class Subprocess {
 public:
  /// A descriptor of ours and the number under which the program gets it.
  struct Handed {
    int ours, its;
  };

  /// Starts `words.front()`, which is looked for in $PATH, in `directory` (empty: ours). Its stdin is empty, and stdout and stderr are
  /// ours, where `handed` does not name them.
  ///
  /// Throws   Error{kIo} if it cannot be run; `advice` ends the message.
  Subprocess(std::vector<std::string> words, const std::filesystem::path& directory, std::span<const Handed> handed,
             const std::string& advice);
  /// Ends the program with SIGTERM if nobody waited for its end.
  ~Subprocess();
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  /// The program's status as waitpid(2) gives it, once it has ended. Called once.
  int wait();

 private:
  pid_t process_ = -1;
};

/// Runs a program to its end and returns what it printed on stdout and stderr.
///
/// Throws   Error{kIo} with its last words if it cannot be run or does not exit with 0; `advice` ends the message.
std::string run_program(const std::vector<std::string>& words, const std::filesystem::path& directory,
                        const std::string& advice);

}  // namespace coppice::data
