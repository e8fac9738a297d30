#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/nn/decoder.h"
#include "coppice/plan/plan.h"

namespace coppice::train {

/// How the routing of an expanded model changes from its parents' function to plain top-K (docs/concepts.md,
/// "Handover").
enum class HandoverPolicy {
  kNone,     ///< at once, as published
  kRelease,  ///< lineage-unique routing, let go token by token over some steps
  kKeep,     ///< lineage-unique routing for good
  kDormant,  ///< copies start with a selection bias that never wins, and rise from there over some steps
};

struct Handover {
  HandoverPolicy policy = HandoverPolicy::kNone;
  int64_t steps = 0;  ///< of a release, or in which dormant copies wake; 0: these rise by balance.rate per step

  /// Throws   Error{kUsage}: an unknown policy (with the nearest), steps without a release or sleepers, or a release
  ///          without steps.
  static Handover from_options(std::string_view policy, int64_t steps);
  bool routes_by_lineage() const { return policy == HandoverPolicy::kRelease || policy == HandoverPolicy::kKeep; }
  /// Share of the tokens that choose by lineage in the step that ends `since` steps (1 or more) after the expansion.
  double share(int64_t since) const;
};

/// Lineage routing of a model that grew by the newest step of `lineage` (coppice.json), for that share of the tokens;
/// null where the share is 0.
///
/// Throws   Error{kUsage} if there is no expansion in the lineage, or it was not a plain expansion (split, scaled top-K).
std::shared_ptr<const nn::LineageRouting> lineage_routing(const std::optional<Json>& lineage, double share,
                                                          uint64_t seed);

/// Puts every copy to sleep: its selection bias starts so far below the others' that it is never chosen. The router
/// method of every layer becomes `dormant`.
///
/// Throws   Error{kUsage} where the model has no selection bias, or sigmoids are not what it is added to.
void put_copies_to_sleep(plan::GrowthPlan& plan, const nn::Decoder& model);

}  // namespace coppice::train
