#include <algorithm>

#include "coppice/base/text.h"
#include "coppice/dist/judge_detail.h"

namespace coppice::dist {
namespace {

using std::chrono::milliseconds;

// Longer than a beat: what a rank says of itself is that old.
constexpr milliseconds kEnding{2'000};
// A connection that broke where all ranks go on: so long the others may take to say something else.
constexpr milliseconds kBroken{5'000};

std::string seconds(milliseconds time) { return cat(fixed_text(static_cast<double>(time.count()) / 1e3, 0), " s"); }

bool is_expected(const RankReport& report) {
  return report.state != RankState::kLeft && report.state != RankState::kKnows;
}

}  // namespace

std::optional<Verdict> judge(const std::vector<RankReport>& reports, const JudgeLimits& limits) {
  const auto first = [&](auto&& is) -> std::optional<size_t> {
    const auto found = std::ranges::find_if(reports, is);
    return found == reports.end() ? std::nullopt : std::optional<size_t>(found - reports.begin());
  };

  if (const auto left = first([](const RankReport& r) { return r.state == RankState::kLeft; })) {
    return Verdict{{*left}, cat("ended with: ", reports[*left].sentence)};
  }

  // Ranks that went silent together, as those of one host do, are named together.
  const auto broke = first([](const RankReport& r) { return r.state == RankState::kBroke; });
  milliseconds longest{0};
  for (const RankReport& report : reports) longest = std::max(longest, report.waits);
  // When a wait ends the run, what a silent rank said last, that it waits too, may be over.
  const milliseconds patience = broke || longest >= limits.timeout ? limits.gone : limits.silence;
  if (first([&](const RankReport& r) { return is_expected(r) && r.silent >= patience; })) {
    Verdict verdict;
    milliseconds silence{0};
    for (size_t r = 0; r < reports.size(); ++r) {
      if (!is_expected(reports[r]) || reports[r].silent < patience * 3 / 4) continue;
      verdict.ranks.push_back(r);
      silence = std::max(silence, reports[r].silent);
    }
    const bool one = verdict.ranks.size() == 1;
    verdict.why = broke ? cat(one ? "is" : "are", " gone (killed?)")
                        : cat(one ? "does" : "do", " not answer since ", seconds(silence),
                              one ? " (its process is stopped, or its host or network is down)"
                                  : " (the processes are stopped, or a host or the network is down)");
    return verdict;
  }

  if (const auto done = first([](const RankReport& r) { return r.state == RankState::kDone; });
      done && longest >= kEnding) {
    return Verdict{{*done}, "has ended its run while others wait for it (a bug in coppice, please report it)"};
  }
  if (longest >= limits.timeout) {
    if (const auto absent =
            first([](const RankReport& r) { return r.state == RankState::kRuns && r.waits == milliseconds{0}; })) {
      return Verdict{{*absent}, cat("does not answer since ", seconds(longest), " (hangs)")};
    }
    const auto waits = first([&](const RankReport& r) { return r.waits == longest; });
    return Verdict{{*waits},
                   cat("waits since ", seconds(longest),
                       ", and so do all others: each for another (a bug in coppice, please report it)")};
  }
  if (broke && reports[*broke].waits >= kBroken)
    return Verdict{{*broke}, cat("lost a connection: ", reports[*broke].sentence)};
  return std::nullopt;
}

}  // namespace coppice::dist
