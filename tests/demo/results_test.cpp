#include "coppice/demo/results.h"

#include <gtest/gtest.h>

#include <cmath>

#include "coppice/base/error.h"
#include "coppice/demo/demo.h"
#include "coppice/demo/findings.h"
#include "coppice/demo/page.h"

namespace coppice::demo {
namespace {

ArmResult arm(double loss, double seconds, int64_t steps) {
  ArmResult out;
  out.loss = {{"code", loss - 0.5}, {"prose", loss + 0.5}};
  out.seconds_per_step = seconds;
  out.train_seconds = seconds * static_cast<double>(steps);
  out.steps = steps;
  out.curve = {{100, loss + 1}, {200, loss}};
  out.expert_share = {{"code", {{0.25, 0.75}}}, {"prose", {{0.5, 0.5}}}};
  return out;
}

SeedResult seed(uint64_t number, double control, double upcycled, double scratch) {
  SeedResult out;
  out.seed = number;
  out.trunk = arm(3.0, 1, 50);
  out.expanded = arm(3.1, 1, 0);
  out.control = arm(control, 1, 50);
  out.upcycled = arm(upcycled, 2, 50);
  out.scratch = arm(scratch, 2, 100);
  out.sibling_cosine = {{1, 0.9}};
  out.sibling_distance = {{1, 0.4}};
  return out;
}

TEST(SeedResult, ComputesJumpGapAndEtaFromMeanLosses) {
  const auto s = seed(0, 2.0, 1.9, 1.8);
  EXPECT_NEAR(s.jump(), 0.1, 1e-12);
  EXPECT_NEAR(s.gap(), 0.2, 1e-12);
  EXPECT_NEAR(s.eta(), 0.5, 1e-12);
}

TEST(SeedResult, ReadsBackWhatItWrote) {
  const auto before = seed(7, 2.0, 1.9, 1.8).to_json();
  EXPECT_EQ(SeedResult::from_json(Json::parse(before.dump(), "test")).to_json(), before);
}

TEST(GapClosure, IsGivenOnlyWhereTheGapStandsOutOfItsError) {
  EXPECT_TRUE(gap_closure({seed(0, 2.00, 1.9, 1.80), seed(1, 2.01, 1.9, 1.80), seed(2, 2.0, 1.9, 1.79)}).reliable);
  EXPECT_FALSE(gap_closure({seed(0, 2.0, 1.9, 1.8), seed(1, 1.8, 1.9, 1.9)}).reliable) << "a gap that changes its sign";
  EXPECT_FALSE(gap_closure({seed(0, 2.0, 1.9, 1.8)}).reliable) << "one seed has no spread";
  EXPECT_FALSE(gap_closure({seed(0, 1.8, 1.9, 2.0), seed(1, 1.8, 1.9, 2.0)}).reliable) << "a negative gap";
}

TEST(SeedResult, SavesWhatThePapersFormulaAndTheClockSay) {
  const auto s = seed(0, 2.0, 1.9, 1.8);
  EXPECT_NEAR(s.predicted_saving(), 0.5 * (1 - 1.0 / 2.0), 1e-12);
  EXPECT_NEAR(s.measured_saving(), 1 - (50.0 + 100.0) / 200.0, 1e-12);
}

TEST(ResultSentence, SaysWhatTheSeedsGive) {
  const std::vector<SeedResult> seeds = {seed(0, 2.00, 1.86, 1.80), seed(1, 2.02, 1.86, 1.80),
                                         seed(2, 2.0, 1.84, 1.79)};
  const auto text = result_sentence({}, seeds);
  EXPECT_NE(text.find("Expanding 8 experts per layer to 64 after 40 % of "), std::string::npos) << text;
  EXPECT_NE(text.find("lowered the final loss by 0.153 nats (0.140 to 0.160 nats)"), std::string::npos) << text;
  EXPECT_NE(text.find("closes 73 % (70 to 76 %) of the gap to 64 experts from scratch"), std::string::npos) << text;
  EXPECT_NE(text.find("took 25 % (25 to 25 %) less time"), std::string::npos) << text;
}

TEST(ResultSentence, SaysLossesAndWhatItDoesNotKnow) {
  const auto text = result_sentence({}, {seed(0, 2.0, 2.1, 1.8), seed(1, 1.8, 2.0, 1.9)});
  EXPECT_NE(text.find("raised the final loss by 0.150 nats (0.100 to 0.200 nats)"), std::string::npos) << text;
  EXPECT_NE(text.find("too small or too uncertain to say what share was closed"), std::string::npos) << text;
  EXPECT_EQ(text.find("closes"), std::string::npos) << text;
  auto slow = seed(0, 2.0, 1.9, 1.8);
  slow.surgery_seconds = 100;
  EXPECT_NE(result_sentence({}, {slow}).find("took 25 % more time"), std::string::npos);
}

TEST(Budget, DependsOnOptionsAlone) {
  DemoOptions options;
  const auto base = budget(options);
  EXPECT_EQ(budget(options).steps, base.steps);
  options.minutes *= 2;
  EXPECT_NEAR(static_cast<double>(budget(options).steps), 2.0 * static_cast<double>(base.steps), 1.0);
  options.minutes = 0.01;
  EXPECT_THROW((void)budget(options), Error);
}

TEST(DemoPage, CanBeMadeFromOneSeedAndFromSeveral) {
  PreparedData data;
  data.domains = {{.name = "code"}, {.name = "prose"}};
  for (const auto& domain : data.domains) {
    data.sources[domain.name] = Json::object({{"package", "p"}, {"version", "1"}, {"sha256", std::string(64, 'a')}});
  }
  EXPECT_NE(demo_page({}, data, {seed(0, 2.0, 1.9, 1.8)}).html().find("one seed has no spread"), std::string::npos);
  EXPECT_NE(demo_page({}, data, {seed(0, 2.00, 1.9, 1.80), seed(1, 2.01, 1.9, 1.80)}).html().find("Gap closure eta ="),
            std::string::npos);
}

}  // namespace
}  // namespace coppice::demo
