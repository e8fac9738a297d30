#include <gtest/gtest.h>

#include <thread>

#include "coppice/base/text.h"
#include "coppice/io/safetensors.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

using testing::expect_error;
using testing::TempDir;

std::vector<std::byte> counted(size_t n, unsigned start) {
  std::vector<std::byte> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<std::byte>(start + i);
  return out;
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TempDir dir;
  const auto path = dir / "m.safetensors";
  SafetensorsWriter writer(path,
                           {{.name = "b", .dtype = Dtype::kBf16, .shape = {2, 3}},
                            {.name = "a \"quoted\" \u00e4", .dtype = Dtype::kU8, .shape = {}},
                            {.name = "none", .dtype = Dtype::kF32, .shape = {0, 7}},
                            {.name = "f4", .dtype = Dtype::kF4, .shape = {6}}},
                           {{"format", "pt"}, {"note", "x\ny"}});
  EXPECT_EQ(writer.tensor("f4").bytes, 3u);
  for (const auto& t : writer.tensors()) writer.write(t, 0, counted(t.bytes, 7));
  const auto wanted = writer.tensors();
  writer.finish();
  const auto file = SafetensorsFile::open(path);
  EXPECT_EQ(file.tensors(), wanted);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"note", "x\ny"}}));
  EXPECT_EQ(file.data_start() % 4096, 0u);  // a block of the disk, for direct writes and reflinks
  for (const auto& t : file.tensors()) {
    const auto data = file.data(t);
    EXPECT_EQ(std::vector<std::byte>(data.begin(), data.end()), counted(t.bytes, 7)) << t.name;
  }
}

TEST(SafetensorsWriter, WritesAFileWithoutTensors) {
  const TempDir dir;
  SafetensorsWriter(dir / "m.safetensors", {}, {}).finish();
  EXPECT_TRUE(SafetensorsFile::open(dir / "m.safetensors").tensors().empty());
}

// Pieces come from many threads, in no order.
TEST(SafetensorsWriter, TakesPiecesFromManyThreads) {
  const TempDir dir;
  constexpr size_t kTensors = 8, kBytes = 4096, kPiece = 97, kThreads = 4;
  std::vector<TensorInfo> infos;
  for (size_t i = 0; i < kTensors; ++i) {
    infos.push_back({.name = cat("t", i), .dtype = Dtype::kU8, .shape = {static_cast<int64_t>(kBytes)}});
  }
  SafetensorsWriter writer(dir / "m.safetensors", infos);
  std::vector<std::jthread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t i = 0; i < kTensors; ++i) {
        const auto bytes = counted(kBytes, static_cast<unsigned>(i));
        const size_t pieces = (kBytes + kPiece - 1) / kPiece;
        for (size_t k = pieces; k-- > 0;) {
          if (k % kThreads != thread) continue;
          const size_t first = k * kPiece;
          writer.write(writer.tensor(cat("t", i)), first,
                       std::span(bytes).subspan(first, std::min(kPiece, kBytes - first)));
        }
      }
    });
  }
  threads.clear();
  writer.finish();
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  for (size_t i = 0; i < kTensors; ++i) {
    const auto data = file.data(*file.find(cat("t", i)));
    EXPECT_EQ(std::vector<std::byte>(data.begin(), data.end()), counted(kBytes, static_cast<unsigned>(i)));
  }
}

TEST(SafetensorsWriter, RefusesToFinishWithBytesMissingOrWrittenTwice) {
  const TempDir dir;
  for (const size_t written : {size_t{3}, size_t{5}}) {
    SafetensorsWriter writer(dir / "m.safetensors", {{.name = "w", .dtype = Dtype::kU8, .shape = {4}}});
    writer.write(writer.tensor("w"), 0, counted(std::min(written, size_t{4}), 0));
    if (written > 4) writer.write(writer.tensor("w"), 1, counted(written - 4, 0));
    expect_error(ErrorCode::kInternal, {"'w'", "m.safetensors"}, [&] { writer.finish(); });
  }
}

TEST(SafetensorsWriter, RefusesBytesOutsideOfTheTensor) {
  const TempDir dir;
  SafetensorsWriter writer(dir / "m.safetensors", {{.name = "w", .dtype = Dtype::kU8, .shape = {4}}});
  const auto& w = writer.tensor("w");
  expect_error(ErrorCode::kInternal, {"'w'"}, [&] { writer.write(w, 2, counted(3, 0)); });
  expect_error(ErrorCode::kInternal, {"'w'"}, [&] { writer.write(w, ~uint64_t{0}, counted(3, 0)); });
  expect_error(ErrorCode::kInternal, {"'x'"}, [&] { (void)writer.tensor("x"); });
}

TEST(SafetensorsWriter, RemovesTheFileThatItDidNotFinish) {
  const TempDir dir;
  {
    SafetensorsWriter writer(dir / "m.safetensors", {{.name = "w", .dtype = Dtype::kU8, .shape = {4}}});
  }
  EXPECT_FALSE(std::filesystem::exists(dir / "m.safetensors"));
}

// A source may be mapped while its name is taken over: its pages must not change or vanish.
TEST(SafetensorsWriter, LeavesAMappedFileOfTheSameNameAlone) {
  const TempDir dir;
  const auto path = dir / "m.safetensors";
  testing::write_tensors(path, {{"w", {2}, {1.0f, 2.0f}}});
  const auto before = SafetensorsFile::open(path);
  testing::write_tensors(path, {{"w", {2}, {3.0f, 4.0f}}});
  std::vector<float> values(2);
  to_f32(Dtype::kF32, before.data(*before.find("w")), values);
  EXPECT_EQ(values, (std::vector<float>{1.0f, 2.0f}));
  const auto after = SafetensorsFile::open(path);
  to_f32(Dtype::kF32, after.data(*after.find("w")), values);
  EXPECT_EQ(values, (std::vector<float>{3.0f, 4.0f}));
}

TEST(SafetensorsWriter, NamesThePlaceItCannotWriteTo) {
  const TempDir dir;
  expect_error(ErrorCode::kIo, {"none/m.safetensors", "cannot create it"},
               [&] { SafetensorsWriter writer(dir / "none" / "m.safetensors", {}); });
}

}  // namespace
}  // namespace coppice::io
