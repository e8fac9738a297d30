#include "coppice/data/subprocess.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"

namespace coppice::data {
namespace {

/// The last lines of a program's output, on one line.
std::string last_words(std::string_view output) {
  constexpr size_t kKept = 400;
  if (output.size() > kKept) output.remove_prefix(output.size() - kKept);
  std::string out;
  for (const auto& line : split(output, '\n')) {
    if (!line.empty()) out += cat(out.empty() ? "" : " | ", line);
  }
  return out;
}

}  // namespace

std::string run_program(const std::vector<std::string>& words, const std::filesystem::path& directory,
                        const std::string& advice) {
  const auto fail = [&](const std::string& why) -> Error {
    return Error(ErrorCode::kIo,
                 cat(words.front(), words.size() > 1 ? " " + words[1] : "", ": ", why, " (", advice, ")"));
  };
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw fail(std::generic_category().message(errno));

  std::vector<std::string> copies = words;
  std::vector<char*> argv;
  for (auto& word : copies) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addchdir_np(&actions, directory.c_str());
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
  pid_t process = -1;
  const int failed = ::posix_spawnp(&process, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (failed != 0) {
    ::close(ends[0]);
    throw fail(cat("cannot be run: ", std::generic_category().message(failed)));
  }

  std::string output;
  const Descriptor end(ends[0]);
  const auto reap = [&] {
    int status = 0;
    while (::waitpid(process, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
  };
  try {
    std::array<std::byte, 4096> piece{};
    for (;;) {
      wait_to_read(end.get());
      const size_t got = read_some(end, piece, words.front());
      if (got == 0) break;
      output.append(reinterpret_cast<const char*>(piece.data()), got);
    }
  } catch (...) {
    ::kill(process, SIGTERM);
    reap();
    throw;
  }
  const int status = reap();
  check_interrupt();  // Ctrl-C reaches the program too, and is then the reason
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw fail(last_words(output));
  return output;
}

}  // namespace coppice::data
