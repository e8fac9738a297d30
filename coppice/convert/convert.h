#pragma once

// Dense models to Mixtures of Experts on disk, and back for study.

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/convert/map.h"
#include "coppice/convert/plan.h"
#include "coppice/families/match.h"
#include "coppice/methods/new_router.h"
#include "coppice/output/write_model.h"

namespace coppice::convert {

/// A conversion with all that it needs, nothing computed yet.
class Conversion {
 public:
  /// From `parents` of one shape to a Mixture of Experts. Arguments outlive this.
  ///
  /// Throws   Error{kFormat, kShape} naming what differs between parents; Error{kUnsupported} listing what the family
  ///          cannot hold, unless the plan is lossy, and what no plan can convert (quantised weights).
  Conversion(std::span<const families::Model> parents, const ConversionPlan& plan, const methods::RouterRows* rows);
  /// From a Mixture of Experts back to a dense model of the family `to`. `lossy` as in a plan.
  Conversion(const families::Model& moe, std::string_view to, bool lossy);

  Conversion(const Conversion&) = delete;
  Conversion& operator=(const Conversion&) = delete;

  const Mapping& mapping() const { return mapping_; }
  std::span<const output::OutputTensor> tensors() const { return tensors_; }
  /// What each tensor is, in their order.
  std::vector<std::string> account() const;

 private:
  friend output::WrittenModel convert(Conversion& conversion, const output::OutputSettings& settings);

  std::vector<const families::Model*> sources_;
  std::optional<ConversionPlan> plan_;  ///< none: the way back
  Mapping mapping_;
  std::vector<output::OutputTensor> tensors_;  // refer to the members above
};

/// Writes the converted model: tensors, config.json, the first parent's companion files, lineage. Once.
///
/// Memory   constant: see write_model.
/// Threads  the same bytes for any number, and for any number of parts.
/// Throws   what write_model throws.
output::WrittenModel convert(Conversion& conversion, const output::OutputSettings& settings);

/// The dense family that experts are averaged to if the user names none.
std::string_view dense_counterpart(const families::Model& moe);

}  // namespace coppice::convert
