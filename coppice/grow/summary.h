#pragma once

// What `coppice expand` says of an expansion: sizes before and after, and whether the function is kept.

#include <string>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/grow/expand.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

struct ExpansionSummary {
  int64_t experts_before = 0, experts_after = 0;
  families::ParameterCount parameters_before, parameters_after;
  std::string top_k_before, top_k_after;  ///< as text, because layers may differ: "8", "4 to 8"
  ExpandBytes bytes;
  plan::Exactness exactness;

  /// {"experts": [E, N], "parameters": [before, after], ..., "exact": true, false or null for unknown, "exactness"}.
  Json to_json() const;
};

/// Memory   that of growth_exactness.
/// Throws   as growth_exactness.
ExpansionSummary summary(const families::Model& model, const plan::GrowthPlan& plan);

/// The summary as lines of text: layers, top-K, parameters, bytes, methods, copies, exactness.
std::string summary_text(const ExpansionSummary& summary, const families::Model& model, const plan::GrowthPlan& plan);

}  // namespace coppice::grow
