#pragma once

#include <string>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::verify {

struct LineageDifferences {
  std::vector<std::string> problems;      ///< each a sentence naming a key
  std::vector<std::string> not_compared;  ///< what a run recorded and cannot be recomputed
};

/// Compares coppice.json with the expected one: its steps, its other keys and, in the newest step, what follows from
/// the plan. `grown`: the newest step is the expansion that is recomputed from its own methods and seed, so only their
/// names are checked.
///
/// Throws   nothing because of the lineages, which were checked before.
LineageDifferences compare_lineages(const Json& wanted, const Json& lineage, bool grown);

}  // namespace coppice::verify
