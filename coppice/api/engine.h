#pragma once

// What commands ask of an engine that runs models. The full program has one on libtorch.

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "coppice/api/outcome.h"
#include "coppice/cost/options.h"
#include "coppice/families/match.h"

namespace coppice::api {

struct VerifyOptions;

/// This one runs nothing: each of its functions throws Error{kUnsupported}, which says what to do.
class Engine {
 public:
  virtual ~Engine() = default;

  /// For --function: how the outputs of two models differ. `parents` of the experts, by layer; empty if they have none.
  virtual Outcome function_change(const families::Model& before, const families::Model& after,
                                  const std::map<int64_t, std::vector<int64_t>>& parents,
                                  const VerifyOptions& options) const;

  /// For --measure: seconds per training step, by number of experts.
  virtual std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                                const cost::CostOptions& options) const;
};

}  // namespace coppice::api
