#include "coppice/cost/fit.h"

#include <cmath>
#include <fstream>

#include "tests/testing/errors.h"
#include "tests/testing/made_runs.h"
#include "tests/testing/temp_dir.h"

namespace coppice::cost {
namespace {

using testing::expect_error;
using ::testing::HasSubstr;
using testing::write_arms;

TEST(FitRuns, TakesEtaAndStepTimesFromArms) {
  testing::TempDir dir;
  write_arms(dir / "seed-0", 0, 3.0, 2.7, 2.6);  // eta 0.75, gap 0.40
  write_arms(dir / "seed-1", 1, 3.1, 2.8, 2.6);  // eta 0.60, gap 0.50
  const LocalFit fit = fit_runs(report::read_runs({dir.path()}));
  EXPECT_EQ(fit.num_comparisons, 2u);
  ASSERT_TRUE(fit.closure);
  EXPECT_EQ(fit.closure->points.size(), 2u);
  // At CPT share 1 the least squares meet the mean: 1 - exp(-1 / f0) = 0.675.
  EXPECT_NEAR(fit.closure->f0, -1 / std::log(1 - 0.675), 1e-4);
  EXPECT_NEAR(fit.closure->rms_error, 0.075 * std::sqrt(2), 1e-6);
  EXPECT_NEAR(fit.gap.mean, 0.45, 1e-9);
  // E: 100 tokens at 1000 a second in six runs; N: at 800 and 500, the slower median of four.
  ASSERT_EQ(fit.step_times.size(), 2u);
  EXPECT_EQ(fit.step_times[0], (std::pair<int64_t, double>(8, 0.1)));
  EXPECT_EQ(fit.step_times[1], (std::pair<int64_t, double>(16, 0.2)));
}

TEST(FitRuns, GivesNoEtaWhereTheGapIsNoise) {
  testing::TempDir dir;
  write_arms(dir / "seed-0", 0, 3.0, 2.9, 2.99);
  write_arms(dir / "seed-1", 1, 3.0, 2.9, 3.01);
  const LocalFit fit = fit_runs(report::read_runs({dir.path()}));
  EXPECT_FALSE(fit.closure);
  EXPECT_THAT(fit.notes.front(), HasSubstr("not above three times its standard error"));
  EXPECT_EQ(fit.step_times.size(), 2u) << "step times are still good";
}

TEST(FitRuns, RefusesRunsThatSayNothing) {
  testing::TempDir dir;
  write_arms(dir / "s", 0, 3, 3, 3);
  std::ofstream(dir / "s" / "empty-metrics");
  std::filesystem::create_directories(dir / "none");
  std::ofstream(dir.path() / "none" / "config.toml");
  std::ofstream(dir.path() / "none" / "metrics.jsonl");
  expect_error(ErrorCode::kFormat, {"--fit: 1 run gives neither"},
               [&] { (void)fit_runs(report::read_runs({dir / "none"})); });
  expect_error(ErrorCode::kNotFound, {"metrics.jsonl"}, [&] { (void)report::read_runs({dir / "nowhere"}); });
}

}  // namespace
}  // namespace coppice::cost
