#include "coppice/report/arms.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "coppice/report/curve.h"
#include "tests/testing/made_runs.h"
#include "tests/testing/temp_dir.h"

namespace coppice::report {
namespace {

using ::testing::ElementsAre;
using testing::write_arms;
using testing::write_run;

TEST(CompareArms, FindsControlsOfTheSameSeedAndTokens) {
  testing::TempDir dir;
  write_arms(dir / "seed-0", 0, 3.0, 2.7, 2.6);
  write_arms(dir / "seed-1", 1, 3.1, 2.8, 2.6);
  write_run(dir / "seed-1" / "longer", {.seed = 1, .experts = 16, .last_step = 40, .loss = 1});
  const auto found = compare_arms(read_runs({dir.path()}));
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[1].upcycled, "seed-1/upcycled");
  EXPECT_EQ(found[1].control, "seed-1/control");
  EXPECT_EQ(found[1].fixed, "seed-1/scratch");
  EXPECT_EQ(found[1].experts_before, 8);
  EXPECT_EQ(found[1].experts_after, 16);
  EXPECT_DOUBLE_EQ(found[1].tokens_before, 1000);
  EXPECT_DOUBLE_EQ(found[1].cpt_share(), 1);
  EXPECT_TRUE(found[1].is_validation);
  EXPECT_NEAR(found[1].gain(), 0.3, 1e-12);
  EXPECT_NEAR(found[1].eta(), 0.6, 1e-12);
  EXPECT_NEAR(found[1].gain_by_file.at("a"), 0.3, 1e-12);
}

TEST(CompareArms, GivesNoEtaWithoutARunOfFixedSize) {
  testing::TempDir dir;
  write_arms(dir.path(), 0, 3.0, 2.7, 2.6);
  std::filesystem::remove_all(dir / "scratch");
  const auto groups = group_arms(compare_arms(read_runs({dir.path()})));
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_NEAR(groups[0].gain.mean, 0.3, 1e-12);
  EXPECT_TRUE(std::isnan(groups[0].eta.mean));
  EXPECT_FALSE(groups[0].eta_is_reliable());
}

TEST(CompareArms, GroupsSeedsAndAsksForAGapClearOfItsNoise) {
  testing::TempDir dir;
  write_arms(dir / "seed-0", 0, 3.0, 2.7, 2.60);
  write_arms(dir / "seed-1", 1, 3.0, 2.8, 2.58);
  const auto groups = group_arms(compare_arms(read_runs({dir.path()})));
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].seeds.size(), 2u);
  EXPECT_NEAR(groups[0].gap.standard_error, 0.01, 1e-9);
  EXPECT_TRUE(groups[0].eta_is_reliable());
}

TEST(Summarise, ReadsAGrowthOnTheWay) {
  testing::TempDir dir;
  write_run(dir / "run", {.last_step = 40});
  {
    std::ofstream metrics(dir.path() / "run/metrics.jsonl", std::ios::app);
    metrics << "{\"event\": \"growth\", \"step\": 30, \"experts\": [8, 12]}\n";
  }
  const RunSummary summary = summarise(RunRecord::read(dir / "run"));
  EXPECT_TRUE(summary.grew());
  EXPECT_EQ(summary.experts_before, 8);
  EXPECT_EQ(summary.experts_after, 12);
  EXPECT_DOUBLE_EQ(summary.growth_tokens, 3000);
}

TEST(Summarise, KeepsEveryGrowthOnTheWay) {
  testing::TempDir dir;
  write_run(dir / "run", {.last_step = 40});
  {
    std::ofstream metrics(dir.path() / "run/metrics.jsonl", std::ios::app);
    metrics << "{\"event\": \"growth\", \"step\": 10, \"experts\": [8, 12]}\n"
               "{\"event\": \"growth\", \"step\": 30, \"experts\": [12, 24]}\n";
  }
  const RunSummary summary = summarise(RunRecord::read(dir / "run"));
  ASSERT_EQ(summary.growths.size(), 2u);
  EXPECT_DOUBLE_EQ(summary.growths[0].tokens, 1000);
  EXPECT_EQ(summary.growths[0].after, 12);
  EXPECT_DOUBLE_EQ(summary.growths[1].tokens, 3000);
  EXPECT_EQ(summary.growths[1].before, 12);
  EXPECT_EQ(summary.experts_before, 8);
  EXPECT_EQ(summary.experts_after, 24);
}

TEST(ReadRuns, NamesRunsByWhatTellsThemApart) {
  testing::TempDir dir;
  for (const char* name : {"a/x", "b/x", "b/y"}) write_run(dir / name, {});
  std::vector<std::string> names;
  for (const auto& run : read_runs({dir.path(), dir / "b/y"})) names.push_back(run.name);
  EXPECT_THAT(names, ElementsAre("a/x", "b/x", "b/y"));
}

TEST(RunAxes, CountWhatCameBefore) {
  testing::TempDir dir;
  write_arms(dir.path(), 0, 3.0, 2.7, 2.6);
  const auto runs = read_runs({dir.path()});
  const auto axes = run_axes(runs);
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].name != "upcycled") continue;
    EXPECT_NEAR(axes[i].seconds.at(20), 10 * 0.1 + 10 * 0.125, 1e-9) << "ten steps of the trunk, ten of its own";
    EXPECT_EQ(runs[static_cast<size_t>(continued_from(runs, i))].name, "trunk");
    EXPECT_GT(axes[i].flops_per_token, 0);
  }
}

TEST(Thinned, KeepsMeanAndRangeOfEachStretch) {
  Series series{.name = "s"};
  for (int i = 0; i < 10; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 3 ? NAN : i);
  }
  const Series thin = thinned(series, 5);
  EXPECT_THAT(thin.x, ElementsAre(1, 3, 5, 7, 9));
  EXPECT_THAT(thin.y, ElementsAre(0.5, 2, 4.5, 6.5, 8.5));
  EXPECT_THAT(thin.y_low, ElementsAre(0, 2, 4, 6, 8));
  EXPECT_THAT(thin.y_high, ElementsAre(1, 2, 5, 7, 9));
  EXPECT_EQ(thinned(series, 10).y_low.size(), 0u);
}

}  // namespace
}  // namespace coppice::report
