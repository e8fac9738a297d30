#include <gtest/gtest.h>

#include <vector>

#include "coppice/plan/utility.h"
#include "tests/testing/errors.h"

namespace coppice::plan {
namespace {

Scores run_of(double first, const std::string& tokens) {
  Scores s{.model_digest = "m", .model_type = "qwen3_moe", .layers = 2, .experts = 2};
  s.tokens_digest = tokens;
  s.tokens_seen = 30;
  s.batch_tokens = 10;
  s.batches = 3;
  s.second_moment = "batches";
  const MetricSums own{.sum = {{1, {7, 8}}}};
  const MetricSums by_batch{.sum = {{1, {first, 2}}}, .sum_sq = {{1, {first * first, 4}}}};
  s.metrics = {{"weight_norm", {own, own}}, {"gradient_squared", {own, own}}, {"batch_fisher", {by_batch, by_batch}}};
  s.gate_concentration = {.sum = {{1, 4.5}}, .sum_sq = {{1, 6.8}}};
  return s;
}

void expect_refused(const Scores& second, std::initializer_list<const char*> words) {
  const std::vector runs{run_of(1, "a"), second};
  testing::expect_error(ErrorCode::kUsage, words, [&] { (void)merge_scores(runs); });
}

TEST(MergeScores, AddsWhatBatchesHaveOfTheirOwn) {
  const std::vector runs{run_of(1, "a"), run_of(3, "b"), run_of(5, "c")};
  const auto merged = merge_scores(runs);
  EXPECT_EQ(merged.batches, 9u);
  EXPECT_EQ(merged.tokens_seen, 90u);
  EXPECT_EQ(merged.metrics.at("batch_fisher").fc2.sum.at(1), (std::vector<double>{9, 6}));
  EXPECT_EQ(merged.metrics.at("batch_fisher").fc1.sum_sq.at(1), (std::vector<double>{35, 12}));
  EXPECT_EQ(merged.metrics.at("weight_norm"), runs[0].metrics.at("weight_norm"));
  EXPECT_DOUBLE_EQ(merged.gate_concentration.sum.at(1), 13.5);
  EXPECT_FALSE(merged.metrics.contains("gradient_squared")) << "|a + b|^2 needs a and b";
  EXPECT_TRUE(merged.second_moment.empty());
  EXPECT_NE(merged.tokens_digest, merge_scores(std::span(runs).first(2)).tokens_digest);
}

TEST(MergeScores, RefusesRunsThatAreNotAlike) {
  testing::expect_error(ErrorCode::kUsage, {"two or more"}, [] { (void)merge_scores(std::vector{run_of(1, "a")}); });
  expect_refused(run_of(1, "a"), {"scores 2", "an earlier file contains"});
  auto other = run_of(3, "b");
  other.model_digest = "n";
  expect_refused(other, {"another model"});
  other = run_of(3, "b");
  other.batch_tokens = 11;
  expect_refused(other, {"batches of 11 tokens", "10"});
  other = run_of(3, "b");
  other.metrics.at("weight_norm").fc1.sum.at(1)[1] = 8.1;
  expect_refused(other, {"weight_norm", "expert 1", "differs"});
  other = run_of(3, "b");
  other.metrics.erase("batch_fisher");
  expect_refused(other, {"have no 'batch_fisher'"});
  other = run_of(3, "b");
  other.metrics.at("batch_fisher").fc2.sum_sq.clear();
  expect_refused(other, {"batch_fisher", "no layer 1"});
  other = run_of(3, "b");
  other.gate_concentration.sum.clear();
  expect_refused(other, {"gate_concentration", "no layer 1"});
}

// Version 0.1.0 called the mean of 1 / sum of squared gate shares effective_top_k.
TEST(MergeScores, ReadTheNameThatGateConcentrationHadIn010) {
  const Json now = run_of(1, "a").to_json();
  Json then = now;
  const Json statistic = now.at("routing").at("gate_concentration");
  then["routing"]["effective_top_k"] = statistic;
  then["routing"].erase("gate_concentration");
  EXPECT_EQ(Scores::from_json(then, "s").to_json(), now);
  then["routing"].erase("effective_top_k");
  testing::expect_error(ErrorCode::kFormat, {"s", "gate_concentration"}, [&] { (void)Scores::from_json(then, "s"); });
}

TEST(MergeScores, CountARunOnceAlsoWithinAMerge) {
  const auto merged = merge_scores(std::vector{run_of(1, "a"), run_of(3, "b")});
  const auto written = Scores::from_json(merged.to_json(), "s");
  EXPECT_EQ(written.runs.size(), 2u);
  for (const auto& again : {run_of(1, "a"), run_of(3, "b"), written}) {
    testing::expect_error(ErrorCode::kUsage, {"scores 2", "an earlier file contains"},
                          [&] { (void)merge_scores(std::vector{written, again}); });
  }
  const auto more = merge_scores(std::vector{written, run_of(5, "c")});
  EXPECT_EQ(more.batches, 9u);
  EXPECT_EQ(more.runs.size(), 3u);
  auto large = run_of(7, "d");
  large.batches = uint64_t{1} << 50;
  large.tokens_seen = 10 * large.batches;
  expect_refused(large, {"more than 9007199254740992 tokens"});
}

TEST(MergeScores, SurvivesBeingWrittenAndRead) {
  const std::vector runs{run_of(1, "a"), run_of(3, "b")};
  const auto merged = merge_scores(runs);
  EXPECT_EQ(Scores::from_json(merged.to_json(), "s").to_json(), merged.to_json());
  auto broken = runs.front().to_json();
  broken["routing"]["gate_concentration"]["sum"].erase("1");
  testing::expect_error(ErrorCode::kFormat, {"sum_sq", "has layers that"},
                        [&] { (void)Scores::from_json(broken, "s"); });
}

}  // namespace
}  // namespace coppice::plan
