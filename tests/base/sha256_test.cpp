#include "coppice/base/sha256.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice {
namespace {

std::string digest_of(std::string_view text) {
  Sha256 digest;
  digest.add(text);
  return digest.hex();
}

// FIPS 180-4 examples.
TEST(Sha256Digest, GivesThePublishedAnswers) {
  EXPECT_EQ(digest_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(digest_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest_of(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Digest, DoesNotDependOnHowTheBytesArrive) {
  Sha256 digest;
  for (const char* part : {"a", "", "bc"}) digest.add(std::string_view(part));
  Sha256 moved = std::move(digest);
  EXPECT_EQ(moved.hex(), digest_of("abc"));
  testing::expect_error(ErrorCode::kInternal, {"ended"}, [&] { moved.add(std::string_view("d")); });
}

TEST(Sha256OfFile, ReadsItAll) {
  const testing::TempDir dir;
  std::ofstream(dir / "f") << std::string(1000000, 'a');
  EXPECT_EQ(sha256_of_file(dir / "f"), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  testing::expect_error(ErrorCode::kNotFound, {"none"}, [&] { (void)sha256_of_file(dir / "none"); });
}

}  // namespace
}  // namespace coppice
