#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/data/text_input.h"
#include "coppice/data/utf8.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::data {
namespace {

namespace fs = std::filesystem;
using coppice::testing::expect_error;
using coppice::testing::TempDir;
using ::testing::ElementsAre;

std::vector<std::string> documents_of(const fs::path& file, const TextFormat& format = {}) {
  std::vector<std::string> out;
  read_documents(file, format, [&](std::string&& document) { out.push_back(std::move(document)); });
  return out;
}

TEST(Utf8, AcceptsEveryLengthOfCharacter) {
  for (const char* text : {"", "plain ascii, long enough for eight at a time", "\xc3\xa9", "\xe6\xbc\xa2",
                           "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xef\xbf\xbf"}) {
    EXPECT_FALSE(find_invalid_utf8(text)) << text;
  }
  EXPECT_FALSE(find_invalid_utf8(std::string_view("a\0b", 3)));
}

TEST(Utf8, FindsTheFirstByteThatIsWrong) {
  const std::vector<std::pair<std::string, size_t>> cases{{"ab\xff", 2},           {"\x80", 0},
                                                          {"\xc0\xaf", 0},         {"\xc3", 0},
                                                          {"abcdefgh\xe6\xbc", 8}, {"\xe0\x80\x80", 0},
                                                          {"\xed\xa0\x80", 0},     {"\xf0\x80\x80\x80", 0},
                                                          {"\xf4\x90\x80\x80", 0}, {"\xf5\x80\x80\x80", 0},
                                                          {"\xc3\xa9\xe6\x28", 2}, {"123456789012345\xfe", 15}};
  for (const auto& [text, at] : cases) EXPECT_EQ(find_invalid_utf8(text), at) << at;
}

TEST(Utf8, CutsBetweenCharacters) {
  const std::string text = "a\xe6\xbc\xa2z";
  EXPECT_EQ(character_boundary(text, 1), 1u);
  EXPECT_EQ(character_boundary(text, 2), 1u);
  EXPECT_EQ(character_boundary(text, 3), 1u);
  EXPECT_EQ(character_boundary(text, 4), 4u);
  EXPECT_EQ(character_boundary(text, 99), 5u);
}

TEST(TextInput, TakesAPlainFileAsOneDocument) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.txt", "one\n\ntwo\r\n");
  EXPECT_THAT(documents_of(dir / "a.txt"), ElementsAre("one\n\ntwo\r\n"));
}

TEST(TextInput, SplitsAtBlankLinesWhereAsked) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.txt", "\n\none\nmore\n\n\n\r\ntwo");
  EXPECT_THAT(documents_of(dir / "a.txt", {.split_at_blank_lines = true}), ElementsAre("one\nmore\n", "two"));
}

TEST(TextInput, ReadsJsonLinesAndSkipsEmptyText) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.jsonl",
                            "{\"text\": \"on\\u00e9\\n\"}\n\n{\"text\": \"\"}\r\n{\"id\": 3, \"text\": \"two\"}");
  EXPECT_THAT(documents_of(dir / "a.jsonl"), ElementsAre("on\xc3\xa9\n", "two"));
  io::write_file_atomically(dir / "b.jsonl", "{\"content\": \"x\"}\n");
  EXPECT_THAT(documents_of(dir / "b.jsonl", {.text_key = "content"}), ElementsAre("x"));
}

TEST(TextInput, NamesFileAndPlaceOfBadText) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.txt", "good\xff");
  expect_error(ErrorCode::kFormat, {"a.txt", "byte 4"}, [&] { documents_of(dir / "a.txt"); });
  io::write_file_atomically(dir / "a.jsonl", "{\"text\": \"x\"}\n{\"txt\": \"y\"}\n");
  expect_error(ErrorCode::kFormat, {"a.jsonl", "line 2", "--text-key"}, [&] { documents_of(dir / "a.jsonl"); });
  io::write_file_atomically(dir / "a.jsonl", "{\"text\": \"x\"}\n{\"text\": \n");
  expect_error(ErrorCode::kFormat, {"a.jsonl", "line 2"}, [&] { documents_of(dir / "a.jsonl"); });
  io::write_file_atomically(dir / "a.jsonl", "{\"text\": 3}\n");
  expect_error(ErrorCode::kFormat, {"a.jsonl", "line 1"}, [&] { documents_of(dir / "a.jsonl"); });
  io::write_file_atomically(dir / "a.jsonl", "{\"text\": \"\xff\"}\n");
  expect_error(ErrorCode::kFormat, {"a.jsonl", "line 1"}, [&] { documents_of(dir / "a.jsonl"); });
  expect_error(ErrorCode::kNotFound, {"none.txt"}, [&] { documents_of(dir / "none.txt"); });
}

TEST(TextInput, ListsFilesOfDirectoriesInOrder) {
  const TempDir dir;
  fs::create_directories(dir / "d/sub");
  for (const auto* name : {"d/b.txt", "d/a.jsonl", "d/c.dat", "d/sub/z.txt", "x.dat"})
    io::write_file_atomically(dir / name, "t");
  const std::vector<fs::path> paths{dir / "x.dat", dir / "d"};
  EXPECT_THAT(list_text_files(paths),
              ElementsAre(dir / "x.dat", dir / "d/a.jsonl", dir / "d/b.txt", dir / "d/sub/z.txt"));
  const std::vector<fs::path> missing{dir / "nowhere"}, empty{dir / "e"};
  fs::create_directories(dir / "e");
  expect_error(ErrorCode::kNotFound, {"nowhere"}, [&] { list_text_files(missing); });
  expect_error(ErrorCode::kNotFound, {"no .txt or .jsonl"}, [&] { list_text_files(empty); });
}

TEST(TextInput, SamplesAboutTheBytesAskedFor) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.txt", std::string(40 << 20, 'x'));
  const std::vector<fs::path> files{dir / "a.txt"};
  uint64_t bytes = 0;
  for (const auto& part : sample_text(files, {}, 4 << 20, 1)) bytes += part.size();
  EXPECT_GT(bytes, 2u << 20);
  EXPECT_LT(bytes, 6u << 20);
  EXPECT_EQ(sample_text(files, {}, 4 << 20, 1).size(), sample_text(files, {}, 4 << 20, 1).size());
}

}  // namespace
}  // namespace coppice::data
