#include "coppice/base/log.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coppice/base/thread_pool.h"

namespace coppice {
namespace {

class LogLines : public ::testing::Test {
 protected:
  void TearDown() override { set_log_sink({}); }
};

TEST_F(LogLines, GoNowhereWithoutASink) {
  ::testing::internal::CaptureStderr();
  log_info("a");
  log_warning("b");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST_F(LogLines, ReachTheSinkOneAtATime) {
  std::vector<std::string> lines;
  set_log_sink([&](LogLevel level, std::string_view text) {
    lines.push_back((level == LogLevel::kWarning ? "w " : "i ") + std::string(text));
  });
  parallel_for(200, 8, [](size_t) { log_info("x"); });
  EXPECT_EQ(lines.size(), 200U);
  log_warning("y");
  EXPECT_EQ(lines.back(), "w y");
}

TEST_F(LogLines, AppearOnStderrUnderTheNameOfTheProgram) {
  ::testing::internal::CaptureStderr();
  set_log_sink(stderr_sink(false));
  log_info("100 % {} done");
  log_warning("careful");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "coppice: 100 % {} done\ncoppice: warning: careful\n");
}

TEST_F(LogLines, AreWarningsOnlyWhenQuiet) {
  ::testing::internal::CaptureStderr();
  set_log_sink(stderr_sink(true));
  log_info("chatter");
  log_warning("careful");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "coppice: warning: careful\n");
}

}  // namespace
}  // namespace coppice
