#include "coppice/io/output_file.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;
using testing::write_text;

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
