#pragma once

#include <string_view>

#include "coppice/api/engine.h"
#include "coppice/api/outcome.h"
#include "coppice/cost/options.h"

namespace coppice::api {

inline constexpr std::string_view kCostSummary =
    "estimate what an expansion would cost and gain, and when it does not pay";

/// Does what `coppice plan` does.
///
/// Memory   headers only; with --measure what `engine` needs.
/// Throws   as cost::estimate_cost and cost::estimate_dense_cost, and what `engine` throws.
Outcome cost(const cost::CostOptions& options, const Engine& engine);

}  // namespace coppice::api
