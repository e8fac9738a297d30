#include "coppice/io/block_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

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

std::string pattern(size_t bytes, size_t start = 0) {
  std::string out(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) out[i] = static_cast<char>((start + i) * 131 >> 3);
  return out;
}

// Writes [begin, end) of the pattern from an address that agrees with the offset modulo a block, or is off by `shift`.
void write_range(BlockFile& file, size_t begin, size_t end, size_t shift = 0) {
  const BlockBuffer buffer(end - begin + 2 * kBlockBytes);
  const auto bytes = buffer.bytes().subspan(begin % kBlockBytes + shift, end - begin);
  const auto text = pattern(end - begin, begin);
  std::memcpy(bytes.data(), text.data(), text.size());
  file.write(begin, bytes);
}

class BlockFileWrite : public ::testing::TestWithParam<const char*> {};
// A disk, and a file system in memory, which may refuse direct writes.
INSTANTIATE_TEST_SUITE_P(On, BlockFileWrite, ::testing::Values("", "/dev/shm"),
                         [](const auto& test) { return *test.param == '\0' ? "disk" : "memory"; });

TEST_P(BlockFileWrite, GivesTheSameBytesHoweverTheyAreCut) {
  const TempDir dir;
  auto path = dir / "f";
  if (*GetParam() != '\0') {
    if (::access(GetParam(), W_OK) != 0) GTEST_SKIP() << "no " << GetParam();
    path = fs::path(GetParam()) / dir.path().filename();
  }
  constexpr size_t kBytes = 3 * kBlockBytes + 777;
  const std::vector<std::vector<size_t>> all_cuts = {
      {0, kBytes}, {0, 1, kBytes}, {0, 4096, 8192, kBytes}, {0, 4095, 4097, 12288, 12289, kBytes}};
  for (const auto& cuts : all_cuts) {
    for (const size_t shift : {size_t{0}, size_t{1}}) {
      fs::remove(path);
      {
        BlockFile file(path, kBytes);
        for (size_t i = cuts.size() - 1; i-- > 0;) write_range(file, cuts[i], cuts[i + 1], shift);
        file.sync();
      }
      EXPECT_EQ(read_file(path), pattern(kBytes)) << cuts.size() << " cuts, shifted by " << shift;
    }
  }
  fs::remove(path);
}

TEST(BlockFile, ClaimsItsSpaceAndItsLengthBeforeTheFirstByte) {
  const TempDir dir;
  const BlockFile file(dir / "f", 1 << 20);
  struct stat status;
  ASSERT_EQ(::stat((dir / "f").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 1 << 20);
  EXPECT_GE(status.st_blocks * 512, 1 << 20);
}

TEST(BlockFile, KeepsTheBytesOfAnEarlierRun) {
  const TempDir dir;
  EXPECT_FALSE(BlockFile::would_keep(dir / "f", 10000));
  {
    BlockFile file(dir / "f", 10000);
    write_range(file, 0, 10000);
  }
  EXPECT_TRUE(BlockFile::would_keep(dir / "f", 10000));
  EXPECT_FALSE(BlockFile::would_keep(dir / "f", 9999));
  {
    const BlockFile file(dir / "f", 10000);
  }
  EXPECT_EQ(read_file(dir / "f"), pattern(10000));
  {
    const BlockFile file(dir / "f", 9999);
  }
  EXPECT_EQ(read_file(dir / "f"), std::string(9999, '\0'));
}

// Somebody may have put links to the source where the output was begun.
TEST(BlockFile, NeverWritesThroughLinks) {
  const TempDir dir;
  testing::write_text(dir / "source", pattern(5000));
  fs::create_hard_link(dir / "source", dir / "hard");
  fs::create_symlink("source", dir / "soft");
  for (const char* name : {"hard", "soft"}) {
    EXPECT_FALSE(BlockFile::would_keep(dir / name, 5000));
    BlockFile file(dir / name, 5000);
    file.write(0, std::vector<std::byte>(5000));
    EXPECT_EQ(read_file(dir / "source"), pattern(5000)) << name;
    EXPECT_EQ(read_file(dir / name), std::string(5000, '\0')) << name;
  }
}

TEST(BlockFile, NamesThePlaceItCannotWriteTo) {
  const TempDir dir;
  expect_error(ErrorCode::kIo, {"none/f"}, [&] { const BlockFile file(dir / "none" / "f", 10); });
  EXPECT_NO_THROW(BlockFile(dir / "empty", 0).sync());
}

// Where the file system has no reflinks the answer is no, and the caller writes; where it has, the bytes are there.
TEST(BlockFileClone, SharesWholeBlocksOrSaysNo) {
  const TempDir dir;
  const auto text = pattern(4 * kBlockBytes);
  const auto header = R"({"w":{"dtype":"U8","shape":[16384],"data_offsets":[0,16384]}})";
  const auto padded = std::string(header) + std::string(kBlockBytes - 8 - std::strlen(header), ' ');
  const auto source = SafetensorsFile::open(testing::write_raw_safetensors(dir / "s.safetensors", padded, text));
  ASSERT_EQ(source.data_start(), kBlockBytes);
  BlockFile file(dir / "f", 2 * kBlockBytes);
  EXPECT_FALSE(file.clone(1, source, 0, kBlockBytes));
  EXPECT_FALSE(file.clone(0, source, 8, kBlockBytes));
  EXPECT_FALSE(file.clone(0, source, 0, 100));
  if (!file.clone(kBlockBytes, source, 2 * kBlockBytes, kBlockBytes)) GTEST_SKIP() << "this disk has no reflinks";
  EXPECT_EQ(read_file(dir / "f").substr(kBlockBytes), text.substr(2 * kBlockBytes, kBlockBytes));
}

}  // namespace
}  // namespace coppice::io
