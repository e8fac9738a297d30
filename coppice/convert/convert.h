#pragma once

// Converts dense models on disk to Mixtures of Experts, and back for experiments.

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

/// A prepared conversion; no tensor is computed yet.
class Conversion {
 public:
  /// A conversion from `parents` of one shape to a Mixture of Experts. The arguments must outlive this object.
  ///
  /// Throws   Error{kFormat, kShape} naming what differs between parents; Error{kUnsupported} listing what the family
  ///          cannot express, unless the plan is lossy; also for quantised weights.
  Conversion(std::span<const families::Model> parents, const ConversionPlan& plan, const methods::RouterRows* rows);
  /// A conversion from a Mixture of Experts to a dense model of the family `to`. `lossy` as in a plan.
  Conversion(const families::Model& moe, std::string_view to, bool lossy);

  Conversion(const Conversion&) = delete;
  Conversion& operator=(const Conversion&) = delete;

  const Mapping& mapping() const { return mapping_; }
  std::span<const output::OutputTensor> tensors() const { return tensors_; }
  /// A description of each tensor, in their order.
  std::vector<std::string> sources() const;

 private:
  friend output::WrittenModel convert(Conversion& conversion, const output::OutputSettings& settings);

  std::vector<const families::Model*> sources_;
  std::optional<ConversionPlan> plan_;  ///< none for a conversion to a dense model
  Mapping mapping_;
  std::vector<output::OutputTensor> tensors_;  // refer to the members above
};

/// Writes the converted model: tensors, config.json, the first parent's companion files, lineage. May be called once.
///
/// Memory   constant: see write_model.
/// Threads  the bytes do not depend on the number of threads or parts.
/// Throws   what write_model throws.
output::WrittenModel convert(Conversion& conversion, const output::OutputSettings& settings);

/// The default dense family to average experts to.
std::string_view dense_counterpart(const families::Model& moe);

}  // namespace coppice::convert
