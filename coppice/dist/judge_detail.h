#pragma once

// What follows from what ranks say of themselves, and from their silence.

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace coppice::dist {

enum class RankState : char {
  kRuns = 'r',
  kBroke = 'b',  ///< one of its collectives broke; it waits to learn why
  kLeft = 'l',   ///< ended with an error of its own
  kDone = 'd',   ///< came to its end, and waits for the others to come to theirs
  kKnows = 'k',  ///< has read how the run ends; needs the store no more
};

/// What a rank says of itself, and how long ago.
struct RankReport {
  RankState state = RankState::kRuns;
  std::chrono::milliseconds waits{0};   ///< in a collective; 0: it does not wait
  std::string sentence;                 ///< why it left or what broke
  std::chrono::milliseconds silent{0};  ///< since it last said anything
};

struct JudgeLimits {
  std::chrono::milliseconds gone{1'000};       ///< silence of a rank after which it is gone, where a connection broke
  std::chrono::milliseconds silence{8'000};    ///< silence after which a rank is lost, without any other sign
  std::chrono::milliseconds timeout{600'000};  ///< of a collective
};

/// Which ranks are lost and why.
struct Verdict {
  std::vector<size_t> ranks;  ///< at least one
  std::string why;            ///< "is gone (killed?)": follows the names
};

/// Names the first cause: an error that a rank told, before a silence, before a wait that others end.
std::optional<Verdict> judge(const std::vector<RankReport>& reports, const JudgeLimits& limits);

}  // namespace coppice::dist
