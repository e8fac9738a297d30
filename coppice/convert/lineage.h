#pragma once

// A conversion's step of a lineage.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/convert/plan.h"

namespace coppice::convert {

/// What a conversion leaves in the lineage.
struct ConversionRecord {
  const ConversionPlan* plan =
      nullptr;  ///< kept whole, so that `verify` can make the model again; nullptr: the way back
  std::string from, to;
  int64_t experts_before = 0;  ///< of the way back: those that were averaged
  std::vector<std::string> source_digests;
  std::vector<std::string> losses;
  std::map<std::string, std::string> given_routers;  ///< SHA-256 by tensor, where a file gave the rows
  Json settings;
};
/// The first parent's lineage `before` with a conversion appended: a step `convert`, whose parents count slices of
/// dense models, or a step `dense_average`, which has none.
///
/// Throws   Error{kFormat} if `before` is not a lineage.
Json extend_lineage(const std::optional<Json>& before, const ConversionRecord& record);

/// SHA-256 of the routers whose rows a file gave to the newest step, a conversion, by tensor; what 0.1.0 wrote has
/// none.
std::map<std::string, std::string> given_routers(const Json& lineage);
/// The plan of the newest step, if that is a conversion to a Mixture of Experts.
///
/// Throws   Error{kFormat}.
std::optional<ConversionPlan> newest_conversion(const Json& lineage);

}  // namespace coppice::convert
