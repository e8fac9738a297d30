#pragma once

// What commands of both builds ask of the engine that runs models. engine_full.cpp answers with libtorch; in the core
// build engine_core.cpp says that it has no such engine.

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/cost/options.h"
#include "coppice/eval/function_change.h"
#include "coppice/families/match.h"

namespace coppice::cli {

/// A result in both forms of a command's output.
struct Printed {
  Json json;
  std::string text;
};

/// As eval::function_change. Throws Error{kUnsupported} in the core build.
Printed function_change(const families::Model& before, const families::Model& after,
                        const std::map<int64_t, std::vector<int64_t>>& parents, const eval::FunctionSettings& settings);

/// As train::measure_steps, for --measure. Throws Error{kUnsupported} in the core build.
std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                      const cost::CostOptions& options);

}  // namespace coppice::cli
