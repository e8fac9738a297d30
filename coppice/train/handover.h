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
  kNone,     ///< plain top-K at once, as published
  kRelease,  ///< lineage-unique routing, then token by token plain top-K over some steps
  kKeep,     ///< lineage-unique routing for ever
  kDormant,  ///< copies start with a selection bias so low that they are never chosen; it is raised over some steps
};

struct Handover {
  HandoverPolicy policy = HandoverPolicy::kNone;
  /// Of a release, or until dormant copies are awake; 0: their biases rise by balance.rate per step.
  int64_t steps = 0;

  /// Throws   Error{kUsage}: an unknown policy (with the nearest), steps without a release or dormant copies, or a
  ///          release without steps.
  static Handover from_options(std::string_view policy, int64_t steps);
  bool routes_by_lineage() const { return policy == HandoverPolicy::kRelease || policy == HandoverPolicy::kKeep; }
  /// The share of tokens with lineage-unique routing in the step that ends `since` steps (1 or more) after the
  /// expansion.
  double share(int64_t since) const;
};

/// The lineage-unique routing for a share of the tokens of a model that was expanded by the newest
/// step of `lineage` (coppice.json); null if the share is 0.
///
/// Throws   Error{kUsage} if there is no expansion in the lineage, or it was not a plain expansion (split, scaled
///          top-K).
std::shared_ptr<const nn::LineageRouting> lineage_routing(const std::optional<Json>& lineage, double share,
                                                          uint64_t seed);

/// Makes every copy dormant: its selection bias starts so far below the others' that it is never chosen. The router
/// method of every layer becomes `dormant`.
///
/// Throws   Error{kUsage} if the model has no selection bias that is added to sigmoids.
void put_copies_to_sleep(plan::GrowthPlan& plan, const nn::Decoder& model);

}  // namespace coppice::train
