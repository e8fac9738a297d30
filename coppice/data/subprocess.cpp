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

Subprocess::Subprocess(std::vector<std::string> words, const std::filesystem::path& directory,
                       std::span<const Handed> handed, const std::string& advice) {
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  if (!directory.empty()) ::posix_spawn_file_actions_addchdir_np(&actions, directory.c_str());
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  for (const auto& [ours, its] : handed) ::posix_spawn_file_actions_adddup2(&actions, ours, its);
  const int failed = ::posix_spawnp(&process_, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    throw Error(ErrorCode::kIo,
                cat(words.front(), ": cannot be run: ", std::generic_category().message(failed), " (", advice, ")"));
  }
}

Subprocess::~Subprocess() {
  if (process_ <= 0) return;
  ::kill(process_, SIGTERM);
  wait();
}

int Subprocess::wait() {
  int status = 0;
  while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
  }
  process_ = -1;
  return status;
}

std::string run_program(const std::vector<std::string>& words, const std::filesystem::path& directory,
                        const std::string& advice) {
  const auto fail = [&](const std::string& why) {
    return Error(ErrorCode::kIo,
                 cat(words.front(), words.size() > 1 ? " " + words[1] : "", ": ", why, " (", advice, ")"));
  };
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw fail(std::generic_category().message(errno));
  const Descriptor end(ends[0]);
  Descriptor its_end(ends[1]);
  const Subprocess::Handed handed[] = {{its_end.get(), STDOUT_FILENO}, {its_end.get(), STDERR_FILENO}};
  Subprocess program(words, directory, handed, advice);
  its_end.close();

  std::string output;
  std::array<std::byte, 4096> piece{};
  for (;;) {
    wait_to_read(end.get());
    const size_t got = read_some(end, piece, words.front());
    if (got == 0) break;
    output.append(reinterpret_cast<const char*>(piece.data()), got);
  }
  const int status = program.wait();
  check_interrupt();  // Ctrl-C reaches the program too, and is then the reason
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw fail(last_words(output));
  return output;
}

}  // namespace coppice::data
