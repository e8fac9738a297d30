#include "coppice/io/model_directory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <functional>

#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;
using testing::write_text;

/// Everything that can be done with a file by its name.
std::vector<std::function<void(const ModelDirectory&, const fs::path&)>> uses(const fs::path& scratch) {
  return {[](const auto& files, const auto& name) { (void)files.open(name); },
          [](const auto& files, const auto& name) { (void)files.read(name); },
          [](const auto& files, const auto& name) { (void)files.read_json(name); },
          [](const auto& files, const auto& name) { (void)files.open_tensors(name); },
          [](const auto& files, const auto& name) { (void)files.sha256(name); },
          [](const auto& files, const auto& name) { (void)files.state(name); },
          [scratch](const auto& files, const auto& name) { files.copy(name, scratch / "copy"); }};
}

TEST(ModelDirectory, ReadsFilesByTheirNames) {
  const TempDir dir;
  write_text(dir / "m" / "a.json", "{\"x\": 1}");
  write_text(dir / "m" / "sub" / "b", "text");
  fs::create_symlink("sub/b", dir / "m" / "link");
  const ModelDirectory files(dir / "m" / "");
  EXPECT_EQ(files.read("sub/b"), "text");
  EXPECT_EQ(files.read("link"), "text");
  EXPECT_EQ(files.read_json("a.json").at("x").as_int(), 1);
  EXPECT_EQ(files.sha256("sub/b"), sha256_of_file(dir / "m" / "sub" / "b"));
  EXPECT_EQ(files.state("sub/b")->bytes, 4u);
  EXPECT_EQ(files.state("none"), std::nullopt);
  EXPECT_TRUE(files.has("a.json") && files.has("link") && !files.has("none"));
  EXPECT_TRUE(files.has_folder("sub") && !files.has_folder("a.json") && !files.has_folder("none"));
  EXPECT_EQ(files.names(), (std::vector<std::string>{"a.json", "link", "sub"}));
  EXPECT_EQ(files.names("sub"), std::vector<std::string>{"b"});
  EXPECT_TRUE(files.names("none").empty());
  expect_error(ErrorCode::kNotFound, {"none", "no such file"}, [&] { (void)files.read("none"); });
  expect_error(ErrorCode::kNotFound, {"none", "no such file"}, [&] { (void)files.read("sub/none/x"); });
  expect_error(ErrorCode::kFormat, {"a.json", "longer than"}, [&] { (void)files.read("a.json", 3); });
  expect_error(ErrorCode::kNotFound, {"does not exist"}, [&] { ModelDirectory(dir / "nowhere"); });
  expect_error(ErrorCode::kNotFound, {"does not exist"}, [&] { ModelDirectory(""); });
}

// Each way out, by each call: none of them reads a byte of it, and none waits.
TEST(ModelDirectory, RefusesWhatLeadsOutAndWhatIsNoFile) {
  const TempDir dir;
  const auto model = dir / "m";
  write_text(dir / "secret", "{}");
  fs::create_directories(model / "folder");
  fs::create_symlink("../secret", model / "out");
  fs::create_symlink(dir / "secret", model / "absolute");
  fs::create_symlink("out", model / "twice");
  fs::create_symlink("/dev/zero", model / "device");
  fs::create_symlink("..", model / "up");
  fs::create_symlink("loop", model / "loop");
  ASSERT_EQ(::mkfifo((model / "pipe").c_str(), 0600), 0);
  const ModelDirectory files(model);
  for (const char* name : {"out", "absolute", "twice", "device", "up/secret", "../secret", "folder/../../secret",
                           "/etc/passwd", "pipe", "folder", "up"}) {
    SCOPED_TRACE(name);
    for (const auto& use : uses(dir.path())) {
      expect_error(ErrorCode::kFormat, {}, [&] { use(files, name); });
    }
  }
  for (const auto& use : uses(dir.path())) EXPECT_THROW(use(files, "loop"), Error);
  expect_error(ErrorCode::kFormat, {"out", "leaves the directory by a symbolic link"},
               [&] { (void)files.read("out"); });
  expect_error(ErrorCode::kFormat, {"pipe", "is a named pipe"}, [&] { (void)files.read("pipe"); });
  expect_error(ErrorCode::kFormat, {"folder", "is a directory"}, [&] { (void)files.read("folder"); });
  expect_error(ErrorCode::kFormat, {"up", "leaves the"}, [&] { (void)files.names("up"); });
  EXPECT_FALSE(fs::exists(dir / "copy"));
}

TEST(ModelDirectoryWalk, TellsOfEverythingInOrderAndFollowsNoLink) {
  const TempDir dir;
  write_text(dir / "m" / "b" / "deep" / "x", "");
  write_text(dir / "m" / "closed" / "y", "");
  write_text(dir / "m" / "a", "");
  fs::create_directory(dir / "m" / "empty");
  fs::create_directory_symlink("b", dir / "m" / "link");
  fs::create_symlink("/nowhere", dir / "m" / "z");
  std::vector<std::string> seen;
  ModelDirectory(dir / "m").walk([&](const fs::path& relative, ModelDirectory::Entry entry) {
    constexpr std::array<const char*, 3> kEnds = {"", "/", "/ is empty"};
    seen.push_back(relative.string() + kEnds.at(static_cast<size_t>(entry)));
    return relative != "closed";
  });
  EXPECT_EQ(seen, (std::vector<std::string>{"a", "b/", "b/deep/", "b/deep/x", "closed/", "empty/", "empty/ is empty",
                                            "link", "z"}));
}

// Whatever lies there: 20,000 folders in one another took hours where each was looked up from the top.
TEST(ModelDirectoryWalk, EndsAtALimitOfDepthThatItNames) {
  const TempDir dir;
  fs::path deep = dir / "m";
  for (int i = 0; i < ModelDirectory::kMostFolders; ++i) deep /= "f";
  write_text(deep / "x", "1");
  const ModelDirectory files(dir / "m");
  int64_t entries = 0;
  const auto count = [&](const fs::path&, ModelDirectory::Entry) { return ++entries > 0; };
  files.walk(count);
  EXPECT_EQ(entries, ModelDirectory::kMostFolders + 1);
  EXPECT_EQ(files.read(deep.lexically_relative(dir / "m") / "x"), "1");
  fs::create_directory(deep / "f");
  expect_error(ErrorCode::kUnsupported, {"f/f/f", "depth 65", "at most 64"}, [&] { files.walk(count); });
}

TEST(ModelDirectory, FollowsLinksIntoTheBlobsOfTheHuggingFaceCacheOnly) {
  const TempDir dir;
  const auto repository = dir / "models--org--name", snapshot = repository / "snapshots" / "0123abc";
  fs::create_directories(snapshot);
  write_text(repository / "blobs" / "c0", "blob");
  write_text(repository / "other" / "c0", "other");
  fs::create_symlink("../../blobs/c0", snapshot / "a");
  fs::create_symlink("../../other/c0", snapshot / "b");
  fs::create_symlink("../../blobs", snapshot / "c");
  const ModelDirectory files(snapshot);
  EXPECT_EQ(files.read("a"), "blob");
  files.copy("a", dir / "copy");
  EXPECT_FALSE(fs::is_symlink(dir / "copy"));
  expect_error(ErrorCode::kFormat, {"leaves the"}, [&] { (void)files.read("b"); });
  expect_error(ErrorCode::kFormat, {}, [&] { (void)files.read("c"); });
}

TEST(ModelDirectoryCopy, KeepsBytesAndModeMakesParentsAndReplaces) {
  const TempDir dir;
  std::string text(3'000'000, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31);
  write_text(dir / "m" / "from", text);
  fs::permissions(dir / "m" / "from", fs::perms(0550));
  fs::create_symlink("from", dir / "m" / "link");
  const ModelDirectory files(dir / "m");
  files.copy("link", dir / "a" / "b" / "to");
  EXPECT_EQ(read_file(dir / "a" / "b" / "to"), text);
  EXPECT_EQ(fs::status(dir / "a" / "b" / "to").permissions(), fs::perms(0550));
  EXPECT_FALSE(fs::is_symlink(dir / "a" / "b" / "to"));
  write_text(dir / "old", "old and longer");
  write_text(dir / "m" / "new", "new");
  files.copy("new", dir / "old");
  EXPECT_EQ(read_file(dir / "old"), "new");
  expect_error(ErrorCode::kIo, {"onto itself"}, [&] { files.copy("new", dir / "m" / "new"); });
  EXPECT_EQ(files.read("new"), "new");
}

// /proc has no copy_file_range and files of size 0: the bytes come by read and write.
TEST(ModelDirectoryCopy, FallsBackToReadAndWrite) {
  const TempDir dir;
  ModelDirectory("/proc/self").copy("cmdline", dir / "to");
  EXPECT_EQ(read_file(dir / "to"), read_file("/proc/self/cmdline"));
}

}  // namespace
}  // namespace coppice::io
