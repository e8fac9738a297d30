#include "coppice/io/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "coppice/base/text.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;
using testing::write_text;

std::vector<std::string> listing(const fs::path& directory) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(directory)) out.push_back(entry.path().filename());
  std::ranges::sort(out);
  return out;
}

TEST(AtomicDirectory, AppearsWholeAtCommit) {
  const TempDir dir;
  AtomicDirectory output(dir / "out/");
  write_text(output.path() / "sub" / "a", "x");
  EXPECT_FALSE(fs::exists(dir / "out"));
  EXPECT_EQ(output.path(), dir / ".out.tmp-work" / "model");
  output.commit();
  EXPECT_EQ(read_file(dir / "out" / "sub" / "a"), "x");
  EXPECT_EQ(listing(dir.path()), std::vector<std::string>{"out"});
}

TEST(AtomicDirectory, LiesWhereItsParentIsThoughThePathLeadsElsewhereMeanwhile) {
  const TempDir dir;
  fs::create_directories(dir / "a" / "deep");
  fs::create_directory(dir / "b");
  fs::create_directory_symlink("a/deep", dir / "link");
  AtomicDirectory output(dir / "link" / ".." / "out");
  write_text(output.path() / "x", "1");
  fs::remove(dir / "link");
  fs::create_directory_symlink("b", dir / "link");
  output.commit();
  EXPECT_EQ(read_file(dir / "a" / "out" / "x"), "1");
  EXPECT_TRUE(fs::is_empty(dir / "b"));
  EXPECT_EQ(listing(dir.path()), (std::vector<std::string>{"a", "b", "link"}));
}

TEST(AtomicDirectory, LeavesNothingWithoutCommit) {
  const TempDir dir;
  {
    AtomicDirectory output(dir / "out");
    write_text(output.path() / "a", "x");
  }
  EXPECT_TRUE(listing(dir.path()).empty());
}

TEST(AtomicDirectory, RefusesATargetThatExists) {
  const TempDir dir;
  fs::create_symlink("nowhere", dir / "out");
  expect_error(ErrorCode::kUsage, {"out", "exists"}, [&] { AtomicDirectory output(dir / "out"); });
  expect_error(ErrorCode::kIo, {"none/out"}, [&] { AtomicDirectory output(dir / "none" / "out"); });
}

// Hours of work must not be lost because somebody made a directory of that name.
TEST(AtomicDirectory, KeepsItsWorkIfTheTargetAppearedMeanwhile) {
  const TempDir dir;
  {
    AtomicDirectory output(dir / "out");
    write_text(output.path() / "a", "x");
    fs::create_directory(dir / "out");
    expect_error(ErrorCode::kIo, {"out", "the finished output stays at", ".out.tmp-work"}, [&] { output.commit(); });
  }
  EXPECT_TRUE(fs::is_empty(dir / "out"));
  EXPECT_EQ(read_file(dir / ".out.tmp-work" / "model" / "a"), "x");
}

// A process that was killed cleans nothing up; the next one does.
TEST(AtomicDirectory, RemovesWhatAKilledProcessLeft) {
  const TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) {
    auto* output = new AtomicDirectory(dir / "out");
    write_text(output->path() / "a", "x");
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  ASSERT_TRUE(fs::exists(dir / ".out.tmp-work" / "model" / "a"));
  write_text(dir / ".other.tmp-work", "another target");
  AtomicDirectory output(dir / "out");
  EXPECT_TRUE(fs::is_empty(output.path()));
  output.commit();
  EXPECT_EQ(listing(dir.path()), (std::vector<std::string>{".other.tmp-work", "out"}));
}

TEST(AtomicDirectory, LeavesWhatALivingProcessWritesAlone) {
  const TempDir dir;
  AtomicDirectory first(dir / "out");
  write_text(first.path() / "a", "x");
  expect_error(ErrorCode::kIo, {"out", "another process"}, [&] { AtomicDirectory second(dir / "out"); });
  EXPECT_EQ(read_file(first.path() / "a"), "x");
  first.commit();
  EXPECT_EQ(read_file(dir / "out" / "a"), "x");
}

TEST(AtomicDirectory, LeavesADirectoryOfSomebodyElseAlone) {
  const TempDir dir;
  write_text(dir / ".out.tmp-work" / "thesis.txt", "precious");
  expect_error(ErrorCode::kUsage, {".out.tmp-work"}, [&] { AtomicDirectory output(dir / "out"); });
  EXPECT_EQ(read_file(dir / ".out.tmp-work" / "thesis.txt"), "precious");
}

TEST(FileWrite, NeverWritesThroughALinkAtItsTemporaryName) {
  const TempDir dir;
  write_text(dir / "victim", "precious");
  for (int n = 1; n < 200; ++n) {
    fs::create_symlink("victim", dir / cat(".a.json.tmp-", static_cast<int64_t>(::getpid()), "-", n));
  }
  write_file_atomically(dir / "a.json", "text");
  EXPECT_EQ(read_file(dir / "victim"), "precious");
  EXPECT_FALSE(fs::is_symlink(dir / "a.json"));
  EXPECT_EQ(read_file(dir / "a.json"), "text");
}

TEST(FileWrite, ReplacesTheOldTextAtOnce) {
  const TempDir dir;
  write_file_atomically(dir / "a.json", "one");
  write_file_atomically(dir / "a.json", "two");
  EXPECT_EQ(read_file(dir / "a.json"), "two");
  EXPECT_EQ(listing(dir.path()), std::vector<std::string>{"a.json"});
  expect_error(ErrorCode::kIo, {"none"}, [&] { write_file_atomically(dir / "none" / "a", "x"); });
  expect_error(ErrorCode::kIo, {"cannot rename it"}, [&] { write_file_atomically(dir.path(), "x"); });
}

TEST(FileRead, GivesEveryByte) {
  const TempDir dir;
  const std::string text("a\0\n\xff", 4);
  write_text(dir / "a", text);
  EXPECT_EQ(read_file(dir / "a"), text);
  EXPECT_FALSE(read_file("/proc/self/status").empty());  // of size 0 by its own account
  expect_error(ErrorCode::kNotFound, {"none"}, [&] { (void)read_file(dir / "none"); });
  expect_error(ErrorCode::kFormat, {"is a directory; wanted a regular file"}, [&] { (void)read_file(dir.path()); });
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error(ErrorCode::kFormat, {"pipe", "is a named pipe"}, [&] { (void)read_file(dir / "pipe"); });
  expect_error(ErrorCode::kFormat, {"is a device"}, [&] { (void)read_file("/dev/zero"); });
}

TEST(FreeSpace, NamesBothFiguresWhereItIsTooLittle) {
  const TempDir dir;
  EXPECT_NO_THROW(check_free_space(dir.path(), 1));
  EXPECT_NO_THROW(check_free_space(dir / "not" / "there" / "yet", 1));
  expect_error(ErrorCode::kIo, {"free; wanted", "B"}, [&] { check_free_space(dir / "x", uint64_t{1} << 62); });
}

}  // namespace
}  // namespace coppice::io
