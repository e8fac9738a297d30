#include "coppice/corpus/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/sha256.h"
#include "coppice/corpus/packages.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::corpus {
namespace {

namespace fs = std::filesystem;
using coppice::testing::expect_error;
using coppice::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

// What an earlier run left in the cache is all that is needed; no program runs.
TEST(FetchDomains, NeedsNoNetworkTheSecondTime) {
  const TempDir dir;
  fs::create_directories(dir / "corpus-2");
  for (const auto& package : packages()) {
    const std::string name(package.domain);
    io::write_file_atomically(dir / ("corpus-2/" + name + ".jsonl"),
                              "{\"text\": \"first\"}\n{\"text\": \"second\"}\n{\"text\": \"third\"}\n");
    io::write_file_atomically(dir / ("corpus-2/" + name + ".json"), R"({"version": "1.2-3"})");
  }
  const auto domains = fetch_domains(dir.path(), 12);
  ASSERT_EQ(domains.size(), packages().size());
  for (const auto& domain : domains) {
    EXPECT_THAT(domain.documents, ElementsAre("first", "second"));
    EXPECT_EQ(domain.version, "1.2-3");
    EXPECT_EQ(domain.bytes, 11u);
    Sha256 digest;
    digest.add("first\nsecond\n");
    EXPECT_EQ(domain.digest, digest.hex());
  }
}

TEST(ReadDomains, TakesFilesAndFoldersAsDomains) {
  const TempDir dir;
  fs::create_directories(dir / "letters/deep");
  io::write_file_atomically(dir / "letters/a.txt", "alpha");
  io::write_file_atomically(dir / "letters/deep/b.jsonl", "{\"text\": \"beta\"}\n{\"text\": \"gamma\"}\n");
  io::write_file_atomically(dir / "code.txt", std::string(40000, 'x'));
  io::write_file_atomically(dir / "README.md", "not text of a domain");
  const auto domains = read_domains(dir.path(), 1 << 20);
  ASSERT_EQ(domains.size(), 2u);
  EXPECT_EQ(domains[0].name, "code");
  EXPECT_EQ(domains[0].bytes, 40000u);
  EXPECT_EQ(domains[0].documents.size(), 3u);
  EXPECT_EQ(domains[1].name, "letters");
  EXPECT_THAT(domains[1].documents, UnorderedElementsAre("alpha", "beta", "gamma"));
  EXPECT_TRUE(domains[1].package.empty());
  EXPECT_EQ(domains[1].digest, read_domains(dir.path(), 1 << 20)[1].digest);
}

TEST(ReadDomains, ExplainsWhatIsMissing) {
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, {"nowhere", "not a directory"}, [&] { read_domains(dir / "nowhere", 100); });
  expect_error(ErrorCode::kNotFound, {"no subdirectory"}, [&] { read_domains(dir.path(), 100); });
  fs::create_directories(dir / "empty");
  expect_error(ErrorCode::kNotFound, {"empty"}, [&] { read_domains(dir.path(), 100); });
}

TEST(ReadDomains, RejectsTwoDomainsOfOneName) {
  const TempDir dir;
  fs::create_directories(dir / "a");
  io::write_file_atomically(dir / "a/x.txt", "text");
  io::write_file_atomically(dir / "a.txt", "text");
  expect_error(ErrorCode::kFormat, {"two domains are named 'a'"}, [&] { read_domains(dir.path(), 100); });
}

}  // namespace
}  // namespace coppice::corpus
