#pragma once

// The step of a conversion in a lineage.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/convert/plan.h"

namespace coppice::convert {

/// What a conversion records in the lineage.
struct ConversionRecord {
  /// Recorded completely, so that `verify` can recompute the model; nullptr for a conversion to a dense model.
  const ConversionPlan* plan = nullptr;
  std::string from, to;
  int64_t experts_before = 0;  ///< for a conversion to a dense model: the number of averaged experts
  std::vector<std::string> source_digests;
  std::vector<std::string> losses;
  std::map<std::string, std::string> given_routers;  ///< SHA-256 by tensor, for rows read from a file
  Json settings;
};
/// The first parent's lineage `before` with a conversion appended: a step `convert`, whose parents are slices of dense
/// models, or a step `dense_average`, which has no parents.
///
/// Throws   Error{kFormat} if `before` is not a lineage.
Json extend_lineage(const std::optional<Json>& before, const ConversionRecord& record);

/// SHA-256, by tensor, of the routers whose rows the newest step, a conversion, read from a file; lineages of version
/// 0.1.0 do not record them.
std::map<std::string, std::string> given_routers(const Json& lineage);
/// The plan of the newest step, if that is a conversion to a Mixture of Experts.
///
/// Throws   Error{kFormat}.
std::optional<ConversionPlan> newest_conversion(const Json& lineage);

}  // namespace coppice::convert
