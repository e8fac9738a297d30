#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/convert/plan.h"
#include "coppice/families/match.h"

namespace coppice::verify {

/// The result of checking a conversion: dense models to a Mixture of Experts, or back.
struct ConversionResult {
  bool ok = false;
  std::string from, to;
  std::optional<convert::ConversionPlan> plan;  ///< none for a conversion to a dense model
  int64_t identical = 0;                        ///< tensors bit-equal to one of the first parent's
  int64_t changed = 0;                          ///< tensors computed otherwise from parents: norms plus 1, averages
  int64_t experts = 0;                          ///< tensors of experts, recomputed and equal
  int64_t routers = 0;                          ///< routers, recomputed and equal
  int64_t routers_given = 0;                    ///< routers whose rows came from a file and were not recomputed
  int64_t new_parts = 0;                        ///< new tensors: zeros, ones, or the first units of the dense layer
  std::vector<std::pair<std::string, std::string>> tensors;  ///< description of each tensor of the model after
  std::vector<std::string> losses;                           ///< what the model before has that was left out
  int64_t files_equal = 0;                                   ///< files beside the weights that equal the first parent's
  std::vector<std::string> not_compared;                     ///< what could not be compared
  std::vector<std::string> problems;                         ///< each a sentence naming a tensor; empty if ok
  /// One sentence: ok and what was not compared, or the number of problems.
  std::string verdict() const;
  Json to_json() const;
};

/// Recomputes every tensor of `after` by the plan in its lineage and compares the bytes; also compares config.json by
/// meaning, and the files beside the weights.
///
/// Memory   4 MiB per thread, or more for a piece that cannot be divided.
/// Threads  the result does not depend on the number of threads.
/// Throws   Error{kFormat} if `after` has no lineage with a conversion as its newest step; Error{kUsage} for another
///          number of parents; Error{kInterrupted}.
ConversionResult verify_conversion(std::span<const families::Model> parents, const families::Model& after,
                                   size_t threads);
/// The same for a dense model whose feed-forward layers are averages of experts.
ConversionResult verify_average(const families::Model& moe, const families::Model& after, size_t threads);

}  // namespace coppice::verify
