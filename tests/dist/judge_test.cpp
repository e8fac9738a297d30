// Which rank is named as the cause.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/dist/judge_detail.h"

namespace coppice::dist {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;

const JudgeLimits kLimits{.gone = 1s, .silence = 8s, .timeout = 30s};

struct Case {
  const char* name;
  std::vector<RankReport> reports;
  std::vector<size_t> ranks;
  std::string why;
};

class Judge : public ::testing::TestWithParam<Case> {};

TEST_P(Judge, NamesTheCause) {
  const auto verdict = judge(GetParam().reports, kLimits);
  ASSERT_EQ(verdict.has_value(), !GetParam().ranks.empty());
  if (!verdict) return;
  EXPECT_EQ(verdict->ranks, GetParam().ranks);
  EXPECT_EQ(verdict->why, GetParam().why);
}

const RankReport kFine, kWaits{.waits = 3s}, kWaitsLong{.waits = 31s};
const RankReport kBroken{.state = RankState::kBroke, .waits = 1s, .sentence = "connection closed"};
const RankReport kBrokenLong{.state = RankState::kBroke, .waits = 6s, .sentence = "connection closed"};
const RankReport kLeft{.state = RankState::kLeft, .sentence = "no space left"};
const RankReport kDone{.state = RankState::kDone};
const RankReport kKnows{.state = RankState::kKnows, .silent = 20s};

RankReport silent(std::chrono::milliseconds time, RankState state = RankState::kRuns) {
  return {.state = state, .silent = time};
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Judge,
    ::testing::Values(
        Case{"NobodyIfAllIsWell", {kFine, kWaits, kFine}, {}, ""},
        Case{"NobodyIfOneIsLate", {kFine, silent(7900ms), kWaits}, {}, ""},
        Case{"NobodyIfSomeAreDone", {kDone, kDone, kFine}, {}, ""},
        Case{"NobodyOfThoseWhoKnow", {kFine, kKnows}, {}, ""},
        Case{"TheOneThatLeft", {kBroken, silent(9s), kLeft, kWaitsLong}, {2}, "ended with: no space left"},
        Case{"TheSilentOneIfAConnectionBroke", {kBroken, silent(1100ms), kBroken}, {1}, "is gone (killed?)"},
        Case{"NobodyYetIfAConnectionBroke", {kBroken, silent(600ms), kBroken}, {}, ""},
        Case{"TheSilentOne",
             {kWaits, kFine, silent(8s)},
             {2},
             "does not answer since 8 s (its process is stopped, or its host or network is down)"},
        Case{"TheSilentOnesTogether",
             {kWaits, silent(7900ms), silent(8s), silent(2s)},
             {1, 2},
             "do not answer since 8 s (the processes are stopped, or a host or the network is down)"},
        Case{"ASilentOneThatWasDone",
             {kFine, silent(9s, RankState::kDone)},
             {1},
             "does not answer since 9 s (its process is stopped, or its host or network is down)"},
        Case{"TheOneThatOthersWaitFor", {kWaitsLong, kWaits, kFine, kWaits}, {2}, "does not answer since 31 s (hangs)"},
        Case{"TheSilentOneEvenIfItSaidThatItWaits",
             {kWaitsLong, {.waits = 29s, .sentence = {}, .silent = 3s}},
             {1},
             "does not answer since 3 s (its process is stopped, or its host or network is down)"},
        Case{"TheOneThatWaitsIfAllDo",
             {kWaits, kWaitsLong},
             {1},
             "waits since 31 s, and so do all others: each for another (a bug in coppice, please report it)"},
        Case{"TheOneThatIsDoneTooSoon",
             {kDone, kWaits},
             {0},
             "has ended its run while others wait for it (a bug in coppice, please report it)"},
        Case{"TheConnectionIfNobodyIsLost", {kFine, kBrokenLong}, {1}, "lost a connection: connection closed"}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace coppice::dist
