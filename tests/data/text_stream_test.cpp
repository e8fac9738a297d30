#include "coppice/data/text_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zlib.h>

#include "coppice/data/text_input.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::data {
namespace {

namespace fs = std::filesystem;
using coppice::testing::expect_error;
using coppice::testing::TempDir;
using ::testing::ElementsAre;

/// `text` as one member of gzip.
std::string packed(std::string_view text) {
  z_stream stream{};
  EXPECT_EQ(::deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(::deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

std::string all_of(const fs::path& path) {
  TextStream stream(path);
  std::string text;
  std::vector<char> piece(1000);
  while (const size_t n = stream.read(piece)) text.append(piece.data(), n);
  return text;
}

std::vector<std::string> documents_of(const fs::path& file) {
  std::vector<std::string> out;
  read_documents(file, {}, [&](std::string&& document) { out.push_back(std::move(document)); });
  return out;
}

std::string long_text() {
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += std::to_string(i) + " words\n";
  return text;
}

TEST(TextStream, UnpacksGzipWhateverItsName) {
  const TempDir dir;
  const std::string text = long_text();
  for (const char* name : {"a.txt.gz", "a.txt"}) {
    io::write_file_atomically(dir / name, packed(text));
    EXPECT_EQ(all_of(dir / name), text);
    EXPECT_EQ(text_bytes(dir / name), text.size());
  }
  io::write_file_atomically(dir / "plain.gz", text);
  EXPECT_EQ(all_of(dir / "plain.gz"), text);
  EXPECT_EQ(text_bytes(dir / "plain.gz"), text.size());
}

// As `cat a.gz b.gz` and parallel packers make them; tapes leave zeros behind.
TEST(TextStream, ReadsMembersOneAfterTheOther) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.gz", packed("one\n") + packed("") + packed(long_text()) + packed("end"));
  EXPECT_EQ(all_of(dir / "a.gz"), "one\n" + long_text() + "end");
  io::write_file_atomically(dir / "a.gz", packed("one") + std::string(600'000, '\0'));
  EXPECT_EQ(all_of(dir / "a.gz"), "one");
  io::write_file_atomically(dir / "a.gz", packed(""));
  EXPECT_EQ(all_of(dir / "a.gz"), "");
}

TEST(TextStream, ReadsLinesOverPiecesAndMembers) {
  const TempDir dir;
  const std::string wide(700'000, 'x');
  io::write_file_atomically(dir / "a.gz", packed("one\n\n" + wide) + packed("\nlast"));
  TextStream stream(dir / "a.gz");
  std::string line;
  std::vector<std::string> lines;
  while (stream.read_line(line)) lines.push_back(line);
  EXPECT_THAT(lines, ElementsAre("one\n", "\n", wide + "\n", "last"));
}

// Wherever a download stopped and whichever byte is wrong, the file is named and nothing is taken for its text.
TEST(TextStream, NamesDamagedGzip) {
  const TempDir dir;
  const auto path = dir / "part.jsonl.gz";
  const std::string good = packed("{\"text\": \"a text of some length\"}\n") + packed("{\"text\": \"two\"}\n");
  const size_t first = packed("{\"text\": \"a text of some length\"}\n").size();
  for (size_t length = 2; length < good.size(); ++length) {
    if (length == first) continue;  // the end of a member: nothing shows that more followed
    io::write_file_atomically(path, good.substr(0, length));
    expect_error(ErrorCode::kFormat, {"part.jsonl.gz", "is incomplete"}, [&] { (void)all_of(path); });
  }
  std::string wrong = good;
  wrong[first - 6] ^= 1;  // of the check sum
  io::write_file_atomically(path, wrong);
  expect_error(ErrorCode::kFormat, {"part.jsonl.gz", "is damaged"}, [&] { (void)documents_of(path); });
  io::write_file_atomically(path, good + "rest");
  expect_error(ErrorCode::kFormat, {"part.jsonl.gz", "is damaged"}, [&] { (void)all_of(path); });
  io::write_file_atomically(path, good + std::string("\0rest", 5));
  expect_error(ErrorCode::kFormat, {"part.jsonl.gz", "followed by other data"}, [&] { (void)all_of(path); });
}

TEST(TextStream, RefusesOtherFormatsByTheirNames) {
  const TempDir dir;
  const std::vector<std::pair<std::string, const char*>> formats = {{"\x28\xb5\x2f\xfd rest", "zstd-compressed"},
                                                                    {"BZh9", "bzip2-compressed"},
                                                                    {"\xfd"
                                                                     "7zXZ",
                                                                     "xz-compressed"},
                                                                    {"PAR1", "a parquet file"},
                                                                    {"PK\x03\x04", "a zip"},
                                                                    {"\x04\x22\x4d\x18", "lz4-compressed"}};
  for (const auto& [start, name] : formats) {
    io::write_file_atomically(dir / "part.jsonl", start);
    expect_error(ErrorCode::kUnsupported, {"part.jsonl", name, "gzip"},
                 [&] { (void)documents_of(dir / "part.jsonl"); });
  }
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error(ErrorCode::kFormat, {"pipe", "named pipe"}, [&] { (void)documents_of(dir / "pipe"); });
  expect_error(ErrorCode::kFormat, {"pipe"}, [&] { (void)list_text_files(std::vector<fs::path>{dir / "pipe"}); });
}

TEST(TextInput, ReadsPackedJsonLinesAndPackedText) {
  const TempDir dir;
  const std::string lines = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
  for (const char* name : {"a.jsonl.gz", "a.json.gz", "a.ndjson.gz", "a.json"}) {
    io::write_file_atomically(dir / name, packed(lines));
    EXPECT_THAT(documents_of(dir / name), ElementsAre("one", "two")) << name;
  }
  io::write_file_atomically(dir / "b.txt.gz", packed("one\n\ntwo\n"));
  EXPECT_THAT(documents_of(dir / "b.txt.gz"), ElementsAre("one\n\ntwo\n"));
  io::write_file_atomically(dir / "bad.txt.gz", packed("good\xff"));
  expect_error(ErrorCode::kFormat, {"bad.txt.gz", "byte 4"}, [&] { (void)documents_of(dir / "bad.txt.gz"); });
}

// A packed file of a directory that is not read is not passed over either: reading it says what it is.
TEST(TextInput, ListsPackedFilesOfDirectories) {
  const TempDir dir;
  fs::create_directories(dir / "d");
  for (const auto* name : {"d/a.jsonl.gz", "d/b.txt.gz", "d/c.jsonl.zst", "d/d.json.gz", "d/card.json", "d/x.tar.gz"}) {
    io::write_file_atomically(dir / name, "t");
  }
  EXPECT_THAT(list_text_files(std::vector<fs::path>{dir / "d"}),
              ElementsAre(dir / "d/a.jsonl.gz", dir / "d/b.txt.gz", dir / "d/c.jsonl.zst", dir / "d/d.json.gz"));
}

TEST(TextInput, SamplesPackedTextByItsOwnBytes) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.txt.gz", packed(std::string(8 << 20, 'x')));
  uint64_t bytes = 0;
  for (const auto& part : sample_text(std::vector<fs::path>{dir / "a.txt.gz"}, {}, 2 << 20, 1)) bytes += part.size();
  EXPECT_GT(bytes, 1u << 20);
  EXPECT_LT(bytes, 3u << 20);
}

}  // namespace
}  // namespace coppice::data
