#include "coppice/step/schedule.h"

#include <gtest/gtest.h>

#include "tests/testing/errors.h"

namespace coppice::step {
namespace {

const Schedule kHundred{
    .kind = ScheduleKind::kWsd, .peak = 1.0, .min_ratio = 0.1, .steps = 100, .warmup = 10, .anneal_share = 0.2};

TEST(ScheduleRate, WsdWarmsUpHoldsAndAnnealsToItsMinimum) {
  EXPECT_DOUBLE_EQ(kHundred.rate(1), 0.1);
  EXPECT_DOUBLE_EQ(kHundred.rate(10), 1.0);
  EXPECT_DOUBLE_EQ(kHundred.rate(80), 1.0) << "the last step before the anneal has the full rate";
  EXPECT_DOUBLE_EQ(kHundred.rate(85), 1.0 - 0.9 * 0.5) << "a quarter of the anneal done: sqrt(1/4)";
  EXPECT_DOUBLE_EQ(kHundred.rate(100), 0.1);
}

TEST(ScheduleRate, StableStepsDoNotDependOnTheLengthOfTheRun) {
  Schedule longer = kHundred;
  longer.steps = 1000;
  for (int64_t step = 1; step <= 80; ++step) EXPECT_EQ(kHundred.rate(step), longer.rate(step));
}

TEST(ScheduleRate, CosineFallsFromPeakToMinimumAndConstantStays) {
  Schedule s = kHundred;
  s.kind = ScheduleKind::kCosine;
  EXPECT_DOUBLE_EQ(s.rate(10), 1.0);
  EXPECT_NEAR(s.rate(55), 0.55, 1e-12);
  EXPECT_DOUBLE_EQ(s.rate(100), 0.1);
  s.kind = ScheduleKind::kConstant;
  EXPECT_DOUBLE_EQ(s.rate(100), 1.0);
}

TEST(ScheduleRate, RisesAnewAfterAGrowth) {
  Schedule s = kHundred;
  s.restarts = {{.at = 30, .warmup = 5, .peak = 0}, {.at = 50, .warmup = 0, .peak = 0.5}};
  EXPECT_DOUBLE_EQ(s.rate(30), 1.0);
  EXPECT_DOUBLE_EQ(s.rate(31), 0.2);
  EXPECT_DOUBLE_EQ(s.rate(35), 1.0);
  EXPECT_DOUBLE_EQ(s.rate(50), 1.0);
  EXPECT_DOUBLE_EQ(s.rate(51), 0.5);
  EXPECT_DOUBLE_EQ(s.rate(100), 0.05) << "the anneal ends at a share of the newest peak";
  s.kind = ScheduleKind::kCosine;
  EXPECT_DOUBLE_EQ(s.rate(35), 1.0);
  EXPECT_NEAR(s.rate(75), 0.5 * (1 - 0.9 * 0.5), 1e-12) << "half of what is left after the expansion";
  EXPECT_DOUBLE_EQ(s.rate(100), 0.05);
}

TEST(ScheduleRate, NeverRisesAfterWarmUp) {
  for (const auto kind : {ScheduleKind::kWsd, ScheduleKind::kCosine, ScheduleKind::kConstant}) {
    Schedule s = kHundred;
    s.kind = kind;
    for (int64_t step = 11; step <= 100; ++step) EXPECT_LE(s.rate(step), s.rate(step - 1));
  }
}

TEST(ScheduleCheck, RefusesWhatDoesNotFit) {
  Schedule s = kHundred;
  s.warmup = 90;
  testing::expect_error(ErrorCode::kUsage, {"90 steps of warm-up", "20 of annealing", "100 steps"}, [&] { s.check(); });
  s = kHundred;
  s.min_ratio = 1.5;
  testing::expect_error(ErrorCode::kUsage, {"min_lr_ratio"}, [&] { s.check(); });
  testing::expect_error(ErrorCode::kUsage, {"'cosin'", "cosine"}, [] { (void)schedule_kind("cosin"); });
}

}  // namespace
}  // namespace coppice::step
