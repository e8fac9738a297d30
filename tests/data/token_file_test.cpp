#include "coppice/data/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>

#include "coppice/base/json.h"
#include "coppice/base/log.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::data {
namespace {

namespace fs = std::filesystem;
using coppice::testing::expect_error;
using coppice::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Documents = std::vector<std::vector<int32_t>>;

TokenFile write(const fs::path& prefix, const Documents& documents, int64_t vocab_size,
                const std::string& tokenizer = "abc") {
  TokenFileWriter writer(prefix, vocab_size);
  for (const auto& document : documents) writer.add_document(document);
  writer.finish({.tokenizer_digest = tokenizer, .text_bytes = 7, .sources = {"a.txt"}});
  return TokenFile::open(prefix);
}

std::vector<int64_t> starts(const TokenFile& file, uint64_t begin, size_t count) {
  std::vector<int64_t> out(count);
  file.document_starts(begin, out);
  return out;
}

std::vector<int64_t> all_tokens(const TokenFile& file) {
  std::vector<int64_t> out(file.num_tokens());
  file.read(0, out);
  return out;
}

/// The bytes of a .idx with every field to be had by hand.
struct RawIndex {
  std::string magic{"MMIDIDX\0\0", 9};
  uint64_t version = 1;
  uint8_t code = 8;
  uint64_t sequences = 2, boundaries = 3;
  std::vector<int32_t> lengths{3, 2};
  std::vector<int64_t> pointers{0, 6};
  std::vector<int64_t> documents{0, 1, 2};
  std::string tail;

  std::string bytes() const {
    std::string out = magic;
    const auto put = [&](const auto& value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); };
    put(version);
    put(code);
    put(sequences);
    put(boundaries);
    for (const auto v : lengths) put(v);
    for (const auto v : pointers) put(v);
    for (const auto v : documents) put(v);
    return out + tail;
  }
};

void write_raw(const fs::path& prefix, const std::string& idx, const std::string& bin) {
  std::ofstream(prefix.string() + ".idx", std::ios::binary) << idx;
  std::ofstream(prefix.string() + ".bin", std::ios::binary) << bin;
}
const std::string kTenBytes("\1\0\2\0\3\0\4\0\5\0", 10);

TEST(TokenFileRoundTrip, KeepsTokensDocumentsAndCard) {
  const TempDir dir;
  const auto file = write(dir / "set", {{5, 6, 7}, {}, {499}}, 500);
  EXPECT_EQ(file.num_tokens(), 4u);
  EXPECT_EQ(file.num_documents(), 3u);
  EXPECT_THAT(all_tokens(file), ElementsAre(5, 6, 7, 499));
  EXPECT_EQ(file.document(0), (std::pair<uint64_t, uint64_t>{0, 3}));
  EXPECT_EQ(file.document(1), (std::pair<uint64_t, uint64_t>{3, 3}));
  EXPECT_EQ(file.document(2), (std::pair<uint64_t, uint64_t>{3, 4}));
  ASSERT_TRUE(file.card());
  EXPECT_EQ(file.card()->tokens, 4u);
  EXPECT_EQ(file.card()->documents, 3u);
  EXPECT_EQ(file.card()->text_bytes, 7u);
  EXPECT_EQ(file.card()->vocab_size, 500);
  EXPECT_THAT(file.card()->sources, ElementsAre("a.txt"));
}

TEST(TokenFileRoundTrip, ReadsAnyRange) {
  const TempDir dir;
  Documents documents(3);
  for (int i = 0; i < 3000; ++i) documents[static_cast<size_t>(i % 3)].push_back(i);
  const auto file = write(dir / "set", documents, 3000);
  const auto all = all_tokens(file);
  for (const uint64_t begin : {0, 1, 999, 1000, 2500, 2999, 3000}) {
    std::vector<int64_t> part(std::min<uint64_t>(100, 3000 - begin));
    file.read(begin, part);
    for (size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part[i], all[begin + i]);
  }
}

TEST(TokenFileRoundTrip, PicksTheNarrowTypeUpTo65500Ids) {
  const TempDir dir;
  write(dir / "narrow", {{0, 65499}}, 65500);
  EXPECT_EQ(fs::file_size(dir / "narrow.bin"), 4u);
  const auto wide = write(dir / "wide", {{0, 65500}}, 65501);
  EXPECT_EQ(fs::file_size(dir / "wide.bin"), 8u);
  EXPECT_THAT(all_tokens(wide), ElementsAre(0, 65500));
}

TEST(TokenFileOpen, TakesThePrefixOrEitherFile) {
  const TempDir dir;
  write(dir / "a.set", {{1}}, 10);
  for (const auto* name : {"a.set", "a.set.bin", "a.set.idx"})
    EXPECT_EQ(TokenFile::open(dir / name).num_tokens(), 1u) << name;
}

TEST(TokenFileOpen, ReadsEveryIntegerType) {
  const TempDir dir;
  struct Case {
    uint8_t code;
    std::string bin;
    std::vector<int64_t> tokens;
  };
  const std::vector<Case> cases{
      {1, std::string("\xff\x02", 2), {255, 2}},
      {2, std::string("\x7f\x02", 2), {127, 2}},
      {3, std::string("\xff\x7f\x02\x00", 4), {32767, 2}},
      {4, std::string("\x01\x00\x01\x00\x02\x00\x00\x00", 8), {65537, 2}},
      {5, std::string("\x01\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00", 16), {4294967297, 2}},
      {8, std::string("\xff\xff\x02\x00", 4), {65535, 2}}};
  for (const auto& c : cases) {
    RawIndex index{
        .code = c.code, .sequences = 1, .boundaries = 2, .lengths = {2}, .pointers = {0}, .documents = {0, 1}};
    write_raw(dir / "set", index.bytes(), c.bin);
    EXPECT_EQ(all_tokens(TokenFile::open(dir / "set")), c.tokens) << int{c.code};
  }
}

TEST(TokenFileOpen, JoinsTheSequencesOfADocument) {
  const TempDir dir;
  RawIndex index{.boundaries = 2, .documents = {0, 2}};
  write_raw(dir / "set", index.bytes(), kTenBytes);
  const auto file = TokenFile::open(dir / "set");
  EXPECT_EQ(file.num_documents(), 1u);
  EXPECT_EQ(file.document(0), (std::pair<uint64_t, uint64_t>{0, 5}));
}

TEST(TokenFileDocumentStarts, CountFromWhereTheyAreAskedFor) {
  const TempDir dir;
  const auto file = write(dir / "set", {{}, {5, 6, 7}, {}, {}, {8}, {9, 9}, {}}, 10);
  EXPECT_THAT(starts(file, 0, 6), ElementsAre(0, 0, 0, 3, 4, 4));
  EXPECT_THAT(starts(file, 1, 4), ElementsAre(0, 0, 2, 3));
  EXPECT_THAT(starts(file, 5, 1), ElementsAre(0));
  EXPECT_THAT(starts(file, 6, 0), ElementsAre());
  RawIndex index{.boundaries = 2, .documents = {0, 2}};  // one document of two sequences
  write_raw(dir / "joined", index.bytes(), kTenBytes);
  EXPECT_THAT(starts(TokenFile::open(dir / "joined"), 1, 4), ElementsAre(0, 0, 0, 0));
}

TEST(TokenFileOpen, NamesAMissingFile) {
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, {"set.idx"}, [&] { TokenFile::open(dir / "set"); });
  write(dir / "set", {{1}}, 10);
  fs::remove(dir / "set.bin");
  expect_error(ErrorCode::kNotFound, {"set.bin"}, [&] { TokenFile::open(dir / "set"); });
}

TEST(TokenFileOpen, RejectsHostileIndexes) {
  const TempDir dir;
  struct Case {
    const char* says;
    std::function<void(RawIndex&)> spoil;
  };
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  const std::vector<Case> cases{
      {"MMIDIDX", [](RawIndex& i) { i.magic[0] = 'X'; }},
      {"version 2", [](RawIndex& i) { i.version = 2; }},
      {"dtype code 6", [](RawIndex& i) { i.code = 6; }},
      {"dtype code 0", [](RawIndex& i) { i.code = 0; }},
      {"announces", [](RawIndex& i) { i.sequences = kHuge; }},
      {"announces", [](RawIndex& i) { i.sequences = kHuge / 12 + 2; }},
      {"announces", [](RawIndex& i) { i.sequences = 3; }},
      {"announces", [](RawIndex& i) { i.boundaries = kHuge; }},
      {"announces", [](RawIndex& i) { i.boundaries = kHuge / 8 + 4; }},
      {"no document boundary", [](RawIndex& i) { i.boundaries = 0; }},
      {"follow the document boundaries", [](RawIndex& i) { i.tail = "xyz"; }},
      {"sequence 1 has length -2", [](RawIndex& i) { i.lengths[1] = -2; }},
      {"ends at byte 12 of a .bin of 10", [](RawIndex& i) { i.lengths[1] = 3; }},
      {"describes 8 bytes; the .bin has 10", [](RawIndex& i) { i.lengths[1] = 1; }},
      {"sequence 1 starts at byte 4", [](RawIndex& i) { i.pointers[1] = 4; }},
      {"sequence 0 starts at byte -2", [](RawIndex& i) { i.pointers[0] = -2; }},
      {"starts at byte 1000000", [](RawIndex& i) { i.pointers[1] = 1000000; }},
      {"document boundary 0 is 1", [](RawIndex& i) { i.documents[0] = 1; }},
      {"document boundary 2 is 0", [](RawIndex& i) { i.documents = {0, 1, 0}; }},
      {"document boundary 1 is 9", [](RawIndex& i) { i.documents[1] = 9; }},
      {"document boundary 1 is -1", [](RawIndex& i) { i.documents[1] = -1; }},
      {"the last document ends at sequence 1", [](RawIndex& i) { i.documents = {0, 1, 1}; }},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.says);
    RawIndex index;
    c.spoil(index);
    write_raw(dir / "set", index.bytes(), kTenBytes);
    expect_error(ErrorCode::kFormat, {"set.idx", c.says}, [&] { TokenFile::open(dir / "set"); });
  }
}

TEST(TokenFileOpen, RejectsAnIndexCutAnywhere) {
  const TempDir dir;
  const std::string whole = RawIndex{}.bytes();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    write_raw(dir / "set", whole.substr(0, bytes), kTenBytes);
    SCOPED_TRACE(bytes);
    expect_error(ErrorCode::kFormat, {"set.idx"}, [&] { TokenFile::open(dir / "set"); });
  }
}

TEST(TokenFileOpen, RejectsACardOfAnotherSet) {
  const TempDir dir;
  write(dir / "a", {{1, 2}}, 10);
  write(dir / "b", {{1}}, 10);
  fs::copy_file(dir / "b.json", dir / "a.json", fs::copy_options::overwrite_existing);
  expect_error(ErrorCode::kFormat, {"a.json", "1 tokens", "do not belong together"},
               [&] { TokenFile::open(dir / "a"); });
}

TEST(TokenFileOpen, RejectsABrokenCardAndIgnoresAForeignFile) {
  const TempDir dir;
  write(dir / "a", {{1}}, 10);
  io::write_file_atomically(dir / "a.json", R"({"coppice_tokens": 1})");
  expect_error(ErrorCode::kFormat, {"a.json", "tokenizer_digest"}, [&] { TokenFile::open(dir / "a"); });
  io::write_file_atomically(dir / "a.json", R"({"name": "something else"})");
  EXPECT_FALSE(TokenFile::open(dir / "a").card());
}

TEST(TokenFileRead, NamesAnIdOutsideTheVocabularyOfTheCard) {
  const TempDir dir;
  const auto file = write(dir / "set", {{5, 6, 7}, {499}}, 500);
  file.check_vocabulary(1000, "");
  std::fstream(dir / "set.bin", std::ios::binary | std::ios::in | std::ios::out)
      .seekp(4)
      .write("\x60\xea", 2);  // 60000
  std::vector<int64_t> ids(2);
  file.read(0, ids);
  EXPECT_THAT(ids, ElementsAre(5, 6));
  expect_error(ErrorCode::kFormat, {"set.bin", "token 2 is 60000", "wanted 0 to 499"}, [&] { file.read(1, ids); });
}

TEST(TokenFileRead, NamesAnIdThatCameAfterTheCheckOfAFileWithoutACard) {
  const TempDir dir;
  write_raw(dir / "set", RawIndex{}.bytes(), kTenBytes);
  const auto file = TokenFile::open(dir / "set");
  std::vector<int64_t> ids(5);
  file.read(0, ids);
  file.check_vocabulary(9, "");
  file.check_vocabulary(6, "");
  file.check_vocabulary(7, "");
  std::fstream(dir / "set.bin", std::ios::binary | std::ios::in | std::ios::out).seekp(6).write("\6", 1);
  expect_error(ErrorCode::kFormat, {"set.bin", "token 3 is 6", "wanted 0 to 5"}, [&] { file.read(0, ids); });
}

TEST(TokenFileWriter, RefusesToReplaceASet) {
  const TempDir dir;
  write(dir / "set", {{1}}, 10);
  for (const auto* suffix : {".bin", ".json", ".idx"}) {
    for (const auto* other : {".bin", ".json", ".idx"}) {
      if (std::string(other) != suffix) fs::remove(dir / (std::string("set") + other));
    }
    expect_error(ErrorCode::kUsage, {"set", "exists already"}, [&] { TokenFileWriter writer(dir / "set", 10); });
    fs::remove(dir / (std::string("set") + suffix));
    write(dir / "set", {{1}}, 10);
  }
}

// The temporary names can be foreseen: links that lie there are neither followed nor become the set.
TEST(TokenFileWriter, NeverWritesThroughALink) {
  const TempDir dir;
  io::write_file_atomically(dir / "victim", "precious");
  const auto pid = static_cast<int64_t>(::getpid());
  for (const char* suffix : {".bin", ".idx", ".json"}) {
    fs::create_symlink("victim", dir / cat(".set", suffix, ".tmp-", pid));
    for (int n = 1; n < 300; ++n) fs::create_symlink("victim", dir / cat(".set", suffix, ".tmp-", pid, "-", n));
  }
  EXPECT_EQ(write(dir / "set", {{1, 2}}, 10).num_tokens(), 2u);
  EXPECT_EQ(read_file(dir / "victim"), "precious");
  for (const char* suffix : {".bin", ".idx", ".json"}) EXPECT_FALSE(fs::is_symlink(dir / cat("set", suffix)));
  fs::create_symlink("nowhere", dir / "other.idx");
  expect_error(ErrorCode::kUsage, {"other.idx", "exists already"}, [&] { TokenFileWriter(dir / "other", 10); });
}

TEST(TokenFileOpen, RefusesPipesAndDirectories) {
  for (const char* suffix : {".bin", ".idx", ".json"}) {
    const TempDir dir;
    (void)write(dir / "set", {{1, 2}}, 10);
    fs::remove(dir / cat("set", suffix));
    ASSERT_EQ(::mkfifo((dir / cat("set", suffix)).c_str(), 0600), 0);
    expect_error(ErrorCode::kFormat, {suffix, "named pipe"}, [&] { (void)TokenFile::open(dir / "set"); });
    fs::remove(dir / cat("set", suffix));
    fs::create_directory(dir / cat("set", suffix));
    expect_error(ErrorCode::kFormat, {suffix, "is a directory"}, [&] { (void)TokenFile::open(dir / "set"); });
  }
}

TEST(TokenFileWriter, LeavesNothingIfItDoesNotFinish) {
  const TempDir dir;
  {
    TokenFileWriter writer(dir / "set", 10);
    writer.add_document(std::vector<int32_t>{1, 2});
    EXPECT_FALSE(fs::exists(dir / "set.bin"));
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(TokenFileWriter, RejectsIdsOutsideTheVocabulary) {
  const TempDir dir;
  TokenFileWriter writer(dir / "set", 10);
  for (const int32_t id : {-1, 10}) {
    expect_error(ErrorCode::kFormat, {"wanted 0 to 9"}, [&] { writer.add_document(std::vector<int32_t>{1, id}); });
  }
}

TEST(TokenFileVocabulary, ComparesTheCardWithTheModel) {
  const TempDir dir;
  const auto file = write(dir / "set", {{1}}, 100, "abc");
  file.check_vocabulary(100, "abc");
  file.check_vocabulary(128, "abc");  // a model's table may be padded
  file.check_vocabulary(100, "");
  expect_error(ErrorCode::kFormat, {"a vocabulary of 100", "99"}, [&] { file.check_vocabulary(99, "abc"); });
  expect_error(ErrorCode::kFormat, {"tokenizer abc", "xyz"}, [&] { file.check_vocabulary(100, "xyz"); });
}

TEST(TokenFileVocabulary, ScansAForeignSetOnceAndWarns) {
  const TempDir dir;
  write_raw(dir / "set", RawIndex{}.bytes(), kTenBytes);  // ids 1 to 5
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel level, std::string_view line) {
    if (level == LogLevel::kWarning) warnings.emplace_back(line);
  });
  const auto file = TokenFile::open(dir / "set");
  file.check_vocabulary(6, "abc");
  set_log_sink({});
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("tokenizer is unknown")));
  ASSERT_TRUE(fs::exists(dir / "set.checked.json"));
  expect_error(ErrorCode::kFormat, {"ids from 1 to 5", "0 to 4"}, [&] { file.check_vocabulary(5, ""); });

  // What was remembered holds for that .bin alone.
  write_raw(dir / "set", RawIndex{}.bytes(), std::string("\1\0\2\0\3\0\4\0\xff\xff", 10));
  fs::last_write_time(dir / "set.bin", fs::file_time_type::clock::now() + std::chrono::seconds(5));
  expect_error(ErrorCode::kFormat, {"ids from 1 to 65535"},
               [&] { TokenFile::open(dir / "set").check_vocabulary(6, ""); });
}

TEST(TokenFileDigest, IsRememberedWithTheIdsForThatFileAlone) {
  const TempDir dir;
  write_raw(dir / "set", RawIndex{}.bytes(), kTenBytes);
  const auto file = TokenFile::open(dir / "set");
  file.check_vocabulary(6, "");
  const std::string digest = file.digest();
  EXPECT_EQ(digest, sha256_of_file(dir / "set.bin"));
  const fs::path memory = dir / "set.checked.json";
  const Json known = Json::read(memory);
  EXPECT_EQ(known.at("sha256").as_string(), digest);
  EXPECT_EQ(known.at("greatest_id").as_int(), 5) << "what was known before stays";
  Json marked = known;
  marked["sha256"] = "remembered";
  io::write_file_atomically(memory, marked.dump());
  EXPECT_EQ(file.digest(), "remembered") << "not read again";
  marked["sha256"] = 7;
  io::write_file_atomically(memory, marked.dump());
  EXPECT_EQ(file.digest(), digest) << "what cannot be read is not believed";

  write_raw(dir / "set", RawIndex{}.bytes(), std::string("\1\0\2\0\3\0\4\0\1\0", 10));
  fs::last_write_time(dir / "set.bin", fs::file_time_type::clock::now() + std::chrono::seconds(5));
  EXPECT_NE(TokenFile::open(dir / "set").digest(), digest);
}

TEST(TokenFileVocabulary, FindsNegativeIds) {
  const TempDir dir;
  RawIndex index{.code = 3};
  write_raw(dir / "set", index.bytes(), std::string("\1\0\2\0\xff\xff\4\0\5\0", 10));
  expect_error(ErrorCode::kFormat, {"ids from -1 to 5"},
               [&] { TokenFile::open(dir / "set").check_vocabulary(100, ""); });
}

// The other half is tests/parity/test_token_file.py, which writes the set with its own code and reads the numbers back.
TEST(TokenFileParity, ReadsWhatAnIndependentWriterWrote) {
  const char* in = std::getenv("COPPICE_TEST_IN");
  const char* out = std::getenv("COPPICE_TEST_OUT");
  if (in == nullptr || out == nullptr) {
    GTEST_SKIP() << "runs from tests/parity/test_token_file.py, which sets COPPICE_TEST_IN and _OUT";
  }
  const auto file = TokenFile::open(in);
  std::ofstream lines(out);
  for (uint64_t d = 0; d < file.num_documents(); ++d) {
    const auto [begin, end] = file.document(d);
    std::vector<int64_t> ids(end - begin);
    file.read(begin, ids);
    for (const auto id : ids) lines << id << ' ';
    lines << '\n';
  }
}

}  // namespace
}  // namespace coppice::data
