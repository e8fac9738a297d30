#pragma once

// How the routing of an expanded model treats siblings, over the tokens of all ranks.

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "coppice/dist/world.h"
#include "coppice/step/train_step.h"

namespace coppice::step {

struct SiblingRouting {
  double effective_top_k = 0;     ///< as step::effective_top_k
  std::optional<double> overlap;  ///< as step::routing_overlap
};

/// Of each layer of `report` that has routing (StepSettings::keep_routing) and parents, in a batch that `world` (null:
/// one rank) has read.
///
/// Memory   several ranks: the ids of this rank's tokens, one for each choice of an expert; twice.
/// Ranks    collective over `world`; all get the same. Each compares the siblings of some parents: the others send it
///          the ids of the tokens that these got.
std::map<int64_t, SiblingRouting> sibling_routing(const StepReport& report,
                                                  const std::map<int64_t, std::vector<uint32_t>>& parents,
                                                  dist::World* world);

}  // namespace coppice::step
