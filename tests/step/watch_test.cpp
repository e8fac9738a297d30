#include "coppice/step/watch.h"

#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice::step {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

StepReport report(double grad_norm, std::vector<int64_t> counts = {}) {
  StepReport out;
  out.grad_norm = grad_norm;
  if (!counts.empty()) out.layers[3].count_E = at::tensor(counts, at::kLong);
  return out;
}

TEST(WatchGradients, WarnsOfASpikeOnceThereIsAMedian) {
  Watch watch(0, 0);
  EXPECT_THAT(watch.look(1, report(1000)), IsEmpty()) << "nothing to compare with yet";
  for (int step = 2; step < 30; ++step) EXPECT_THAT(watch.look(step, report(1.0)), IsEmpty());
  const auto warnings = watch.look(30, report(50));
  ASSERT_THAT(warnings, SizeIs(1));
  EXPECT_EQ(warnings[0].event, "gradient_spike");
  EXPECT_THAT(warnings[0].message, HasSubstr("step 30"));
  EXPECT_THAT(warnings[0].message, HasSubstr("50 times"));
  EXPECT_EQ(watch.gradient_limit(), 0) << "no limit was asked for";
}

TEST(WatchGradients, SetsALimitFromTheMedian) {
  Watch watch(0, 100);
  EXPECT_EQ(watch.gradient_limit(), 0) << "no median yet: no limit";
  for (int step = 1; step < 30; ++step) (void)watch.look(step, report(2.0));
  EXPECT_DOUBLE_EQ(watch.gradient_limit(), 200.0);
}

TEST(WatchExperts, ReportsADeadOneOnce) {
  Watch watch(3, 0);
  EXPECT_THAT(watch.look(1, report(1, {0, 5, 0})), IsEmpty());
  EXPECT_THAT(watch.look(2, report(1, {0, 5, 1})), IsEmpty());
  const auto warnings = watch.look(3, report(1, {0, 5, 0}));
  ASSERT_THAT(warnings, SizeIs(1));
  EXPECT_EQ(warnings[0].event, "dead_experts");
  EXPECT_EQ(warnings[0].fields.at("layer").as_int(), 3);
  EXPECT_EQ(warnings[0].fields.at("experts").dump(), "[0]");
  EXPECT_THAT(watch.look(4, report(1, {0, 5, 0})), IsEmpty()) << "said once";
  EXPECT_THAT(watch.look(5, report(1, {1, 5, 0})), SizeIs(1)) << "expert 2 has been idle for three steps now";
}

TEST(WatchExperts, StartsAnewAfterAGrowth) {
  Watch watch(2, 0);
  (void)watch.look(1, report(1, {0, 5}));
  watch.forget_experts();
  EXPECT_THAT(watch.look(2, report(1, {0, 5, 1, 1})), IsEmpty());
}

}  // namespace
}  // namespace coppice::step
