#pragma once

#include <string>
#include <vector>

#include "coppice/convert/families.h"
#include "coppice/convert/plan.h"
#include "coppice/families/match.h"

namespace coppice::convert::detail {

/// Whether the conversion multiplies the stored embeddings, because `family` has no key for their factor.
bool folds_embedding_scale(const families::ModelConfig& dense, const families::Family& family);

/// config.json of the Mixture of Experts. Adds to `losses` what it cannot express.
Json moe_config(const families::ModelConfig& dense, const ConversionPlan& plan, std::vector<std::string>& losses);

/// config.json of a dense model of `family` whose feed-forward width is that of the experts.
Json dense_config(const families::ModelConfig& moe, const families::Family& family, std::vector<std::string>& losses);

}  // namespace coppice::convert::detail
