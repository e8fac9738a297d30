#pragma once

#include <string>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::verify {

struct LineageDifferences {
  std::vector<std::string> problems;      ///< each a sentence naming a key
  std::vector<std::string> not_compared;  ///< what a run notes and nothing tells again
};

/// Compares coppice.json with the one that was to be left: its steps, what stands beside them, and of the newest step
/// what follows from the plan (`grown`: it is the one of an expansion that is made again; its methods and seed are what that
/// growth follows, so only their names are looked at).
///
/// Throws   nothing about the lineages, which have been checked.
LineageDifferences compare_lineages(const Json& wanted, const Json& found, bool grown);

}  // namespace coppice::verify
