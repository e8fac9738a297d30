#include "coppice/cost/schedule.h"

#include <gtest/gtest.h>

namespace coppice::cost {
namespace {

// arXiv:2604.19835v2: s_N = 1.9 s_E gives 31.6 % at tau/T = 2/3 (50 % CPT) and 23.7 % at 1/2; sunk 67 % and 50 %.
TEST(RunCostsPublished, AreThePapersSavings) {
  const StepTimes steps{1, 1.9};
  const RunCosts half = run_costs(steps, 2, 1), whole = run_costs(steps, 1, 1);
  EXPECT_NEAR(half.saving(), 0.316, 5e-4);
  EXPECT_NEAR(whole.saving(), 0.237, 5e-4);
  EXPECT_NEAR(half.sunk_saving(), 2.0 / 3, 1e-12);
  EXPECT_NEAR(whole.sunk_saving(), 0.5, 1e-12);
}

// literature.md section 1.1: the same schedules save 11 % and 8 % at a ratio of 1.2, and nothing at 1.
TEST(RunCostsPublished, ShrinkWithTheRatioOfStepTimes) {
  EXPECT_NEAR(run_costs({1, 1.2}, 2, 1).saving(), 0.111, 5e-4);
  EXPECT_NEAR(run_costs({1, 1.2}, 1, 1).saving(), 0.083, 5e-4);
  EXPECT_DOUBLE_EQ(run_costs({1, 1}, 2, 1).saving(), 0);
  EXPECT_LT(run_costs({1.1, 1}, 2, 1).saving(), 0);
}

TEST(RunCosts, AddUp) {
  const RunCosts costs = run_costs({2, 3}, 10, 5);
  EXPECT_DOUBLE_EQ(costs.fixed, 45);
  EXPECT_DOUBLE_EQ(costs.upcycled, 35);
  EXPECT_DOUBLE_EQ(costs.from_checkpoint, 15);
  EXPECT_DOUBLE_EQ(costs.continued, 30);
  EXPECT_DOUBLE_EQ(growth_point(0.5), 2.0 / 3);
}

}  // namespace
}  // namespace coppice::cost
