#include "coppice/io/output_place.h"

#include <gtest/gtest.h>

#include "coppice/io/atomic_file.h"
#include "coppice/io/partial_directory.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;
using testing::write_text;

TEST(OutputDirectory, MustBeNewAndApartFromTheInput) {
  const TempDir dir;
  fs::create_directory(dir / "in");
  fs::create_directory_symlink("in", dir / "link");
  EXPECT_NO_THROW(check_output_directory(dir / "out", dir / "in"));
  EXPECT_NO_THROW(check_output_directory(dir / "in2", dir / "in"));
  EXPECT_NO_THROW(check_output_directory(dir / "in" / ".." / "out", dir / "in"));
  EXPECT_NO_THROW(check_output_directory(dir / "out", {}));
  expect_error(ErrorCode::kUsage, {"is the input"}, [&] { check_output_directory(dir / "in", dir / "in" / "."); });
  expect_error(ErrorCode::kUsage, {"lies inside"}, [&] { check_output_directory(dir / "in" / "out", dir / "in"); });
  expect_error(ErrorCode::kUsage, {"lies inside"}, [&] { check_output_directory(dir / "link" / "out", dir / "in"); });
  expect_error(ErrorCode::kUsage, {"is empty"}, [&] { check_output_directory("", dir / "in"); });
  write_text(dir / "file", "");
  expect_error(ErrorCode::kUsage, {"exists already"}, [&] { check_output_directory(dir / "file", dir / "in"); });
}

// `link/..` is above what the link leads to, so that link/../in/out is no name inside `in`, and the other way round.
TEST(OutputDirectory, IsWhatThePathMeansToTheSystem) {
  const TempDir dir;
  fs::create_directories(dir / "in");
  fs::create_directories(dir / "elsewhere" / "deep");
  fs::create_directories(dir / "elsewhere" / "in");
  fs::create_directories(dir / "in" / "sub");
  fs::create_directory_symlink("elsewhere/deep", dir / "out_of");
  fs::create_directory_symlink("in/sub", dir / "into");
  EXPECT_NO_THROW(check_output_directory(dir / "out_of" / ".." / "in" / "out", dir / "in"));
  expect_error(ErrorCode::kUsage, {"lies inside"}, [&] { check_output_directory(dir / "into/../out", dir / "in"); });
  expect_error(ErrorCode::kUsage, {"is the input"}, [&] { check_output_directory(dir / "into/..", dir / "in"); });
  expect_error(ErrorCode::kUsage, {"ends in '.'"}, [&] { check_output_directory(dir / "new/.", dir / "in"); });
  expect_error(ErrorCode::kUsage, {"exists already"}, [&] { check_output_directory("..", dir / "in"); });
  expect_error(ErrorCode::kUsage, {"exists already"}, [&] { check_output_directory("/", dir / "in"); });
  EXPECT_NO_THROW(check_output_directory(dir / "none" / "out", dir / "in")) << "the parent may be made meanwhile";

  const OutputPlace place(dir / "out_of" / ".." / "in" / "out//");
  EXPECT_EQ(place.name(), "out");
  EXPECT_EQ(place.parent_path(), fs::canonical(dir / "elsewhere" / "in"));
  expect_error(ErrorCode::kIo, {"none/out", "its parent directory"}, [&] { OutputPlace(dir / "none" / "out"); });
}

// What was looked at is written to: a link that is turned in between moves nothing.
TEST(OutputDirectory, StaysWhereItWasChecked) {
  const TempDir dir;
  fs::create_directory(dir / "in");
  fs::create_directory(dir / "apart");
  fs::create_directory_symlink("apart", dir / "link");
  OutputPlace place(dir / "link" / "out");
  place.check_apart_from(dir / "in");
  fs::remove(dir / "link");
  fs::create_directory_symlink("in", dir / "link");
  PartialDirectory out(std::move(place), {}, false, {.plan = "plan", .source = "source"});
  write_text(out.path() / "a", "x");
  EXPECT_TRUE(out.seal([] {}).empty());
  EXPECT_EQ(read_file(dir / "apart" / "out" / "a"), "x");
  EXPECT_TRUE(fs::is_empty(dir / "in"));
}

TEST(OutputDirectory, IsNotGivenItsNameWhereWhatWasWrittenHasGone) {
  const TempDir dir;
  PartialDirectory out(dir / "out", {}, false, {.plan = "plan", .source = "source"});
  write_text(out.path() / "a", "x");
  fs::rename(dir / ".out.tmp-work", dir / "moved");
  expect_error(ErrorCode::kIo, {"out", "moved or replaced"}, [&] { out.seal([] {}); });
  EXPECT_FALSE(fs::exists(dir / "out"));
  EXPECT_EQ(read_file(dir / "moved" / "model" / "a"), "x");
}

const OutputKind kNotes{"notes", [](const fs::path& path) { return read_start(path, 5) == "note:"; }};

void expect_refused(const fs::path& output, std::vector<fs::path> inputs, std::initializer_list<const char*> words) {
  expect_error(ErrorCode::kUsage, words, [&] { check_output_file(output, kNotes, inputs); });
}

TEST(OutputFile, ReplacesNothingButItsKind) {
  const TempDir dir;
  write_text(dir / "old", "note: a long one");
  write_text(dir / "empty", "");
  for (const char* name : {"old", "empty", "new", "no/such/folder"}) check_output_file(dir / name, kNotes, {});
  write_text(dir / "short", "not");
  write_text(dir / "config.json", "{}");
  for (const char* name : {"short", "config.json"})
    expect_refused(dir / name, {}, {name, "not a file of notes", "another name"});
  fs::create_directory(dir / "folder");
  expect_refused(dir / "folder", {}, {"folder", "not a file"});
  fs::create_symlink(dir / "short", dir / "link");
  expect_refused(dir / "link", {}, {"link", "not a file of notes"});
}

TEST(OutputFile, IsApartFromItsInputs) {
  const TempDir dir;
  write_text(dir / "a", "note: a");
  write_text(dir / "model" / "config.json", "{}");
  write_text(dir / "model" / "mine", "note: b");
  fs::create_directory_symlink(dir / "model", dir / "link");
  expect_refused(dir / "a", {dir / "b", dir / "a"}, {"is an input"});
  for (const char* name : {"model/new", "model/mine", "model/sub/new", "link/new", "other/../model/new"}) {
    expect_refused(dir / name, {dir / "model"}, {"lies inside the model"});
    check_output_file(dir / name, kNotes, {});
  }
  check_output_file(dir / "a", kNotes, std::vector<fs::path>{dir / "model", dir / "b"});
}

}  // namespace
}  // namespace coppice::io
