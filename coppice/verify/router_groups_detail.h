#pragma once

#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// Reports a problem unless every router group of a layer has the children of one earlier group, as after an expansion.
///
/// Shapes   parents: [experts after]; -1: unknown.
void check_router_groups(const families::ModelConfig& before, const families::ModelConfig& after, int64_t layer,
                         const std::vector<int64_t>& parents, VerifyResult& result);

}  // namespace coppice::verify::detail
