#include "coppice/cost/closure.h"

#include <gtest/gtest.h>

#include <cmath>

namespace coppice::cost {
namespace {

// literature.md section 1.1: f0 = 0.262 leaves -3, -1, +1, +6, 0 points at the table's five shares (f0 minus table).
TEST(ClosureCurvePublished, IsTheFitOfTable2b) {
  const ClosureCurve curve = published_utility_closure();
  EXPECT_NEAR(curve.f0, 0.262, 0.002);
  const double residuals[] = {-0.030, -0.011, 0.009, 0.060, -0.002};
  for (size_t i = 0; i < curve.points.size(); ++i) {
    EXPECT_NEAR(curve.eta(curve.points[i].cpt_share) - curve.points[i].eta, residuals[i], 0.003) << i;
  }
  EXPECT_NEAR(curve.worst_error, 0.060, 0.002);
  EXPECT_NEAR(curve.rms_error, std::sqrt((0.030 * 0.030 + 0.011 * 0.011 + 0.009 * 0.009 + 0.060 * 0.060) / 4), 0.002);
}

TEST(ClosureCurvePublished, HasHandComputedValues) {
  const ClosureCurve curve{.f0 = 0.262};
  EXPECT_NEAR(curve.eta(0.25), 0.6149, 5e-4);  // 1 - exp(-0.9542)
  EXPECT_NEAR(curve.eta(0.5), 0.8517, 5e-4);
  EXPECT_NEAR(curve.eta(1.0), 0.9780, 5e-4);
  EXPECT_NEAR(curve.share_for(0.9), 0.262 * 2.302585, 1e-5);
  EXPECT_NEAR(curve.eta(curve.share_for(0.37)), 0.37, 1e-12);
}

TEST(ClosureCurvePublished, IsLowerForUniformCopies) {
  for (const double share : {0.1, 0.25, 0.5, 1.0}) {
    EXPECT_LT(published_uniform_closure().eta(share), published_utility_closure().eta(share)) << share;
  }
}

TEST(ClosureFit, RecoversTheCurveThatMadeThePoints) {
  for (const double f0 : {0.05, 0.262, 1.7, 20.0}) {
    const ClosureCurve truth{.f0 = f0};
    const auto fitted = fit_closure({{0.1, truth.eta(0.1)}, {0.4, truth.eta(0.4)}, {2, truth.eta(2)}}, "test");
    EXPECT_NEAR(fitted.f0, f0, 1e-5 * f0);
    EXPECT_LT(fitted.rms_error, 1e-6);
    EXPECT_FALSE(fitted.at_bound);
  }
}

TEST(ClosureFit, SaysWhenThePointsLieOutsideWhatItCanTell) {
  EXPECT_TRUE(fit_closure({{1, 1.36}}, "all of the gap and more").at_bound);
  EXPECT_TRUE(fit_closure({{1, -0.5}}, "nothing").at_bound);
  EXPECT_TRUE(std::isnan(fit_closure({{1, 0.5}}, "one point").rms_error));
}

}  // namespace
}  // namespace coppice::cost
