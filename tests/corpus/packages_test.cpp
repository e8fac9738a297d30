#include "coppice/corpus/packages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "coppice/corpus/file_text.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::corpus {
namespace {

namespace fs = std::filesystem;
using coppice::testing::expect_error;
using coppice::testing::TempDir;
using ::testing::UnorderedElementsAre;

std::string prose(char c) { return "A document about " + std::string(150, c) + " and nothing else.\n"; }

void write_gz(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  const gzFile file = ::gzopen(path.c_str(), "wb");
  ::gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  ::gzclose(file);
}

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
  const Package row{"test", "package", "usr/man", ".gz", plain_text};
  const auto documents = read_package(row, dir.path());
  EXPECT_THAT(documents, UnorderedElementsAre(prose('a'), prose('b'), prose('c')));
  EXPECT_EQ(documents, read_package(row, dir.path()));
}

TEST(ReadPackage, LeavesOutParagraphsOfAnEarlierFileButKeepsShortOnes) {
  const TempDir dir;
  write_gz(dir / "man/a.gz", prose('a') + "\n" + prose('l') + "\nshort\n\nshort\n");
  write_gz(dir / "man/b.gz", prose('b') + "\n" + prose('l') + "\nshort\n");
  EXPECT_THAT(read_package({"test", "package", "man", ".gz", plain_text}, dir.path()),
              UnorderedElementsAre(prose('a') + "\n" + prose('l') + "\nshort\n\nshort\n", prose('b') + "\nshort\n"));
}

TEST(ReadPackage, SaysThatAPackageHoldsNoText) {
  const TempDir dir;
  fs::create_directories(dir / "usr/man");
  const Package row{"test", "package-x", "usr/man", ".gz", plain_text};
  expect_error(ErrorCode::kFormat, {"package-x", "usr/man"}, [&] { read_package(row, dir.path()); });
}

TEST(Packages, CoverAtLeastFiveDomains) {
  EXPECT_GE(packages().size(), 5u);
  for (const auto& row : packages()) EXPECT_NE(row.text_of, nullptr) << row.domain;
}

}  // namespace
}  // namespace coppice::corpus
