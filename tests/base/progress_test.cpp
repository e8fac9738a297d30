#include "coppice/base/progress.h"

#include <gtest/gtest.h>

#include "coppice/base/thread_pool.h"

namespace coppice {
namespace {

TEST(ProgressText, GivesShareRateAndTimeLeft) {
  EXPECT_EQ(detail::progress_text(
                {.label = "expand", .done = 1 << 20, .total = 4 << 20, .unit = ProgressUnit::kBytes, .seconds = 2}),
            "expand  25 %  1 MiB of 4 MiB  512 KiB/s  6.0 s left");
  EXPECT_EQ(detail::progress_text({.label = "train",
                                   .note = "loss 3.21",
                                   .done = 300,
                                   .total = 1200,
                                   .unit = ProgressUnit::kSteps,
                                   .seconds = 100}),
            "train  25 %  300 of 1200 steps  3 steps/s  5 min 00 s left  loss 3.21");
  EXPECT_EQ(detail::progress_text({.label = "tokenize", .done = 1500000, .unit = ProgressUnit::kTokens, .seconds = 3}),
            "tokenize  1.50 M tokens  500 K tokens/s");
}

TEST(ProgressText, EndsWithTheTimeTaken) {
  EXPECT_EQ(detail::progress_text({.label = "x", .done = 4, .total = 4, .seconds = 2, .last = true}),
            "x  100 %  4 of 4 items  2 items/s  in 2.0 s");
}

TEST(ProgressText, DrawsABarForATerminal) {
  EXPECT_EQ(detail::progress_text({.label = "x", .done = 1, .total = 2, .seconds = 1, .bar = true}),
            "x  [############............] 50 %  1 of 2 items  1 items/s  1.0 s left");
}

TEST(ProgressText, StaysWithinAHundredPercent) {
  EXPECT_EQ(detail::progress_text({.label = "x", .done = 3, .total = 2, .seconds = 1}),
            "x  100 %  3 of 2 items  3 items/s");
}

TEST(ProgressShows, NothingForShortWork) {
  ::testing::internal::CaptureStderr();
  enable_progress(true);
  {
    Progress progress("x", 1000, ProgressUnit::kItems);
    parallel_for(1000, 4, [&](size_t) { progress.advance(1); });
    progress.note("n");
  }
  enable_progress(false);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace coppice
