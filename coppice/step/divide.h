#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "coppice/dist/world.h"
#include "coppice/families/model_config.h"
#include "coppice/nn/division.h"

namespace coppice::step {

/// How a model is divided over the ranks of `world` (null: one rank). Siblings of the newest expansion (`parents`, by
/// layer; empty: none) are on different ranks of an expert group as far as there are ranks.
///
/// Ranks    a pure function of the arguments: every rank divides alike, and a resumed run as the run before.
/// Throws   Error{kUsage} if an expert group has more ranks than a layer has experts.
nn::Division divide(std::shared_ptr<dist::World> world, const families::ModelConfig& config, const std::map<int64_t, std::vector<uint32_t>>& parents);

}  // namespace coppice::step
