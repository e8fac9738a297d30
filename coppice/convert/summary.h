#pragma once

// What `coppice convert` says of a conversion: sizes before and after, what is lost, and whether the function is kept.

#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/convert/convert.h"
#include "coppice/convert/plan.h"
#include "coppice/families/match.h"

namespace coppice::convert {

struct ConversionSummary {
  std::string from, to;  ///< model types
  int64_t experts = 0, top_k = 0;
  families::ParameterCount before, after;
  std::string what;                 ///< the plan as lines of text
  std::vector<std::string> losses;  ///< what the new family cannot express
  std::optional<ConversionPlan> plan;
  plan::Exactness exactness;

  Json to_json() const;
  std::string to_text() const;
};

/// Of a conversion of `model`, the first of its dense models. `plan` is empty for the average of experts.
///
/// Memory   one matrix, where the digits that scaling loses have to be looked for.
ConversionSummary summary(const Conversion& conversion, const families::Model& model,
                          const std::optional<ConversionPlan>& plan);

}  // namespace coppice::convert
