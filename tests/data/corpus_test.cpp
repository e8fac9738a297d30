#include "coppice/data/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>

#include "coppice/base/sha256.h"
#include "coppice/data/corpus_packages.h"
#include "coppice/data/strip_markup.h"
#include "coppice/data/subprocess.h"
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
using ::testing::UnorderedElementsAre;

std::string prose(char c) { return "A document about " + std::string(150, c) + " and nothing else.\n"; }

void write_gz(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  const gzFile file = ::gzopen(path.c_str(), "wb");
  ::gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  ::gzclose(file);
}

std::vector<std::string> whole(std::string_view text) { return {std::string(text)}; }

TEST(SplitLong, CutsAtParagraphsAndLosesNothing) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "Paragraph " + std::to_string(i) + "\nwith two lines.\n\n";
  const auto parts = split_long(text, 200);
  std::string joined;
  for (const auto& part : parts) {
    EXPECT_LE(part.size(), 200u);
    EXPECT_TRUE(part.ends_with("\n\n"));
    joined += part;
  }
  EXPECT_EQ(joined, text);
}

TEST(SplitLong, NeverSplitsACharacter) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "\xe6\xbc\xa2";
  const auto parts = split_long(text, 10);
  std::string joined;
  for (const auto& part : parts) {
    EXPECT_EQ(part.size() % 3, 0u);
    EXPECT_LE(part.size(), 10u);
    joined += part;
  }
  EXPECT_EQ(joined, text);
}

TEST(ReadPackage, UnpacksFiltersAndShufflesTheSameEachTime) {
  const TempDir dir;
  write_gz(dir / "usr/man/b.gz", prose('b'));
  write_gz(dir / "usr/man/a.gz", prose('a'));
  write_gz(dir / "usr/man/deep/c.gz", prose('c'));
  write_gz(dir / "usr/man/double.gz", prose('a'));
  write_gz(dir / "usr/man/scrap.gz", "short");
  write_gz(dir / "usr/man/latin1.gz", prose('d') + "\xe9t\xe9");
  write_gz(dir / "usr/man/table.gz", std::string(300, '7'));
  write_gz(dir / "usr/man/other.txt", prose('e'));
  write_gz(dir / "elsewhere/f.gz", prose('f'));
  fs::create_symlink("a.gz", dir / "usr/man/link.gz");
  const CorpusPackage row{"test", "package", "usr/man", ".gz", whole};
  const auto documents = read_package(row, dir.path());
  EXPECT_THAT(documents, UnorderedElementsAre(prose('a'), prose('b'), prose('c')));
  EXPECT_EQ(documents, read_package(row, dir.path()));
}

TEST(ReadPackage, SaysThatAPackageHoldsNoText) {
  const TempDir dir;
  fs::create_directories(dir / "usr/man");
  const CorpusPackage row{"test", "package-x", "usr/man", ".gz", whole};
  expect_error(ErrorCode::kFormat, {"package-x", "usr/man"}, [&] { read_package(row, dir.path()); });
}

TEST(CorpusPackages, CoverAtLeastFiveDomains) {
  EXPECT_GE(corpus_packages().size(), 5u);
  for (const auto& row : corpus_packages()) EXPECT_NE(row.documents, nullptr) << row.domain;
}

// What an earlier run left in the cache is all that is needed; no program runs.
TEST(DebianCorpus, NeedsNoNetworkTheSecondTime) {
  const TempDir dir;
  fs::create_directories(dir / "corpus");
  for (const auto& row : corpus_packages()) {
    const std::string name(row.domain);
    io::write_file_atomically(dir / ("corpus/" + name + ".jsonl"),
                              "{\"text\": \"first\"}\n{\"text\": \"second\"}\n{\"text\": \"third\"}\n");
    io::write_file_atomically(dir / ("corpus/" + name + ".json"), R"({"coppice_corpus": 1, "version": "1.2-3"})");
  }
  const auto domains = fetch_debian_corpus(dir.path(), 12);
  ASSERT_EQ(domains.size(), corpus_packages().size());
  for (const auto& domain : domains) {
    EXPECT_THAT(domain.documents, ElementsAre("first", "second"));
    EXPECT_EQ(domain.version, "1.2-3");
    EXPECT_EQ(domain.bytes, 11u);
    Sha256 digest;
    digest.add("first\nsecond\n");
    EXPECT_EQ(domain.digest, digest.hex());
  }
}

TEST(RunProgram, ReturnsOutputAndExplainsFailure) {
  const TempDir dir;
  EXPECT_EQ(run_program({"sh", "-c", "pwd; echo err >&2"}, dir.path(), "x"), dir.path().string() + "\nerr\n");
  expect_error(ErrorCode::kIo, {"sh -c", "no such thing", "(do this)"},
               [&] { run_program({"sh", "-c", "echo no such thing >&2; exit 3"}, dir.path(), "do this"); });
  expect_error(ErrorCode::kIo, {"coppice-no-such-program", "cannot be run"},
               [&] { run_program({"coppice-no-such-program"}, dir.path(), "x"); });
}

TEST(ReadCorpus, TakesFilesAndFoldersAsDomains) {
  const TempDir dir;
  fs::create_directories(dir / "letters/deep");
  io::write_file_atomically(dir / "letters/a.txt", "alpha");
  io::write_file_atomically(dir / "letters/deep/b.jsonl", "{\"text\": \"beta\"}\n{\"text\": \"gamma\"}\n");
  io::write_file_atomically(dir / "code.txt", std::string(40000, 'x'));
  io::write_file_atomically(dir / "README.md", "not text of a domain");
  const auto domains = read_corpus(dir.path(), 1 << 20);
  ASSERT_EQ(domains.size(), 2u);
  EXPECT_EQ(domains[0].name, "code");
  EXPECT_EQ(domains[0].bytes, 40000u);
  EXPECT_EQ(domains[0].documents.size(), 3u);
  EXPECT_EQ(domains[1].name, "letters");
  EXPECT_THAT(domains[1].documents, UnorderedElementsAre("alpha", "beta", "gamma"));
  EXPECT_TRUE(domains[1].package.empty());
  EXPECT_EQ(domains[1].digest, read_corpus(dir.path(), 1 << 20)[1].digest);
}

TEST(ReadCorpus, ExplainsWhatIsMissing) {
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, {"nowhere", "no directory"}, [&] { read_corpus(dir / "nowhere", 100); });
  expect_error(ErrorCode::kNotFound, {"no sub-folder"}, [&] { read_corpus(dir.path(), 100); });
  fs::create_directories(dir / "empty");
  expect_error(ErrorCode::kNotFound, {"empty"}, [&] { read_corpus(dir.path(), 100); });
}

TEST(ReadCorpus, RejectsTwoDomainsOfOneName) {
  const TempDir dir;
  fs::create_directories(dir / "a");
  io::write_file_atomically(dir / "a/x.txt", "text");
  io::write_file_atomically(dir / "a.txt", "text");
  expect_error(ErrorCode::kFormat, {"two domains are named 'a'"}, [&] { read_corpus(dir.path(), 100); });
}

}  // namespace
}  // namespace coppice::data
