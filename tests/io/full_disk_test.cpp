// Every writer of io on a disk without room: a small tmpfs of its own, and a file-size limit, which the kernel refuses
// in the same places. Both are set in a child process.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/model_directory.h"
#include "coppice/io/safetensors.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::TempDir;

// What `act` returns, or the message of the Error{kIo} that it throws, in a child process.
std::string outcome_in_child(const std::function<std::string()>& act) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);  // as `main` does
    std::string text;
    try {
      text = act();
    } catch (const Error& e) {
      text = e.code == ErrorCode::kIo ? e.what() : cat("another code: ", e.what());
    }
    const auto written = ::write(ends[1], text.data(), text.size());
    ::_exit(written < 0);
  }
  ::close(ends[1]);
  std::string text(4096, '\0');
  text.resize(static_cast<size_t>(std::max<ssize_t>(::read(ends[0], text.data(), text.size()), 0)));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? text : "the child was killed";
}

void limit_file_size(rlim_t bytes) {
  const rlimit limit{bytes, bytes};
  ::setrlimit(RLIMIT_FSIZE, &limit);
}

// Mounts a tmpfs that only this process sees; works without privileges where user namespaces are allowed.
bool mount_small_disk(const std::filesystem::path& at, const char* options) {
  const auto uid = static_cast<int64_t>(::getuid()), gid = static_cast<int64_t>(::getgid());
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  std::ofstream("/proc/self/setgroups") << "deny";
  std::ofstream("/proc/self/uid_map") << cat("0 ", uid, " 1");
  std::ofstream("/proc/self/gid_map") << cat("0 ", gid, " 1");
  return ::mount("tmpfs", at.c_str(), "tmpfs", 0, options) == 0;
}

std::string write_large_tensor(const std::filesystem::path& path, int64_t bytes, const std::function<void()>& between) {
  SafetensorsWriter writer(path, {{.name = "w", .dtype = Dtype::kU8, .shape = {bytes}}});
  between();
  writer.write(writer.tensor("w"), 0, std::vector<std::byte>(static_cast<size_t>(bytes)));
  writer.finish();
  return "nothing was thrown";
}

TEST(FullDisk, IsFoundBeforeTheFirstByteOfATensor) {
  const TempDir dir;
  EXPECT_THAT(outcome_in_child([&] {
                limit_file_size(1000);
                return write_large_tensor(dir / "m.safetensors", 4000, [] {});
              }),
              HasSubstr("m.safetensors: cannot claim 7.9 KiB: no space left"));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

// As on a file system that cannot claim space beforehand.
TEST(FullDisk, IsReportedWithTheTensorThatFoundNoSpace) {
  const TempDir dir;
  EXPECT_THAT(
      outcome_in_child([&] { return write_large_tensor(dir / "m.safetensors", 4000, [] { limit_file_size(2000); }); }),
      HasSubstr("m.safetensors: cannot write 'w': no space left"));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(FullDisk, LeavesNoHalfCopy) {
  const TempDir dir;
  testing::write_text(dir / "from", std::string(5000, 'x'));
  EXPECT_THAT(outcome_in_child([&] {
                limit_file_size(1000);
                ModelDirectory(dir.path()).copy("from", dir / "to");
                return std::string("nothing was thrown");
              }),
              HasSubstr("to: cannot write it: no space left"));
  EXPECT_FALSE(std::filesystem::exists(dir / "to"));
}

TEST(FullDisk, LeavesTheOldTextOfAFile) {
  const TempDir dir;
  testing::write_text(dir / "f.json", "old");
  EXPECT_THAT(outcome_in_child([&] {
                limit_file_size(1000);
                write_file_atomically(dir / "f.json", std::string(5000, 'x'));
                return std::string("nothing was thrown");
              }),
              HasSubstr("f.json: cannot write it: no space left"));
  EXPECT_EQ(read_file(dir / "f.json"), "old");
}

class FullDiskWriter : public ::testing::TestWithParam<std::pair<const char*, void (*)(const std::filesystem::path&)>> {
};
INSTANTIATE_TEST_SUITE_P(
    All, FullDiskWriter,
    ::testing::Values(
        std::pair(
            "tensor", +[](const std::filesystem::path& to) { write_large_tensor(to, 1 << 20, [] {}); }),
        std::pair(
            "text", +[](const std::filesystem::path& to) { write_file_atomically(to, std::string(1 << 20, 'x')); }),
        std::pair(
            "copy",
            +[](const std::filesystem::path& to) {
              const auto self = std::filesystem::canonical("/proc/self/exe");
              ModelDirectory(self.parent_path()).copy(self.filename(), to);
            }),
        std::pair(
            "check", +[](const std::filesystem::path& to) { check_free_space(to, 1 << 20); })),
    [](const auto& test) { return test.param.first; });

TEST_P(FullDiskWriter, SaysSoOnARealOneAndLeavesNothing) {
  const TempDir dir;
  const auto outcome = outcome_in_child([&]() -> std::string {
    if (!mount_small_disk(dir.path(), "size=64k")) return "cannot mount";
    try {
      GetParam().second(dir / "to");
    } catch (const Error& e) {
      return std::filesystem::is_empty(dir.path()) ? e.what() : cat("something was left: ", e.what());
    }
    return "nothing was thrown";
  });
  if (outcome == "cannot mount") GTEST_SKIP() << "this machine gives no mount namespace to tests";
  EXPECT_THAT(outcome, StartsWith((dir / "to").string()));
  EXPECT_THAT(outcome,
              ::testing::AnyOf(HasSubstr("no space left on the device"), HasSubstr(": 64 KiB free; wanted 1 MiB")));
}

}  // namespace
}  // namespace coppice::io
