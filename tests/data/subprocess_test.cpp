#include "coppice/data/subprocess.h"

#include <gtest/gtest.h>

#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::data {
namespace {

using coppice::testing::expect_error;
using coppice::testing::TempDir;

TEST(RunProgram, ReturnsOutputAndExplainsFailure) {
  const TempDir dir;
  EXPECT_EQ(run_program({"sh", "-c", "pwd; echo err >&2"}, dir.path(), "x"), dir.path().string() + "\nerr\n");
  expect_error(ErrorCode::kIo, {"sh -c", "no such thing", "(do this)"},
               [&] { run_program({"sh", "-c", "echo no such thing >&2; exit 3"}, dir.path(), "do this"); });
  expect_error(ErrorCode::kIo, {"coppice-no-such-program", "cannot be run"},
               [&] { run_program({"coppice-no-such-program"}, dir.path(), "x"); });
}

}  // namespace
}  // namespace coppice::data
