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

/// What became of every tensor between dense models and a Mixture of Experts (or back).
struct ConversionAccount {
  bool ok = false;
  std::string from, to;
  std::optional<convert::ConversionPlan> plan;  ///< none: the way back
  int64_t identical = 0;                        ///< tensors that are one of the first parent's, bit for bit
  int64_t changed = 0;        ///< that are made of its tensors otherwise: norms plus 1, averages of parents
  int64_t experts = 0;        ///< tensors of experts, made again and equal
  int64_t routers = 0;        ///< the same of routers
  int64_t routers_given = 0;  ///< routers whose rows came from a file: not made again
  int64_t new_parts = 0;      ///< of zeros, ones, or the first units of the dense layer
  std::vector<std::pair<std::string, std::string>> tensors;  ///< what each tensor of the model after is
  std::vector<std::string> losses;                           ///< what the model before had besides
  int64_t files_equal = 0;                                   ///< files beside the weights that are the first parent's
  std::vector<std::string> not_compared;                     ///< what there was nothing to compare with
  std::vector<std::string> problems;                         ///< each a sentence naming a tensor; empty if ok
  /// One sentence: ok and what was not looked at, or how much is wrong.
  std::string verdict() const;
  Json to_json() const;
};

/// Makes every tensor of `after` again, by the plan in its lineage, and compares the bytes; config.json by what it
/// says, and the files beside the weights.
///
/// Memory   4 MiB a thread, or what a piece needs that cannot be cut.
/// Threads  the same result for any number.
/// Throws   Error{kFormat} if `after` has no lineage that names a conversion; Error{kUsage} for another number of
///          parents; Error{kInterrupted}.
ConversionAccount verify_conversion(std::span<const families::Model> parents, const families::Model& after,
                                    size_t threads);
/// The same of a dense model whose feed-forward layers are averages of experts.
ConversionAccount verify_average(const families::Model& moe, const families::Model& after, size_t threads);

}  // namespace coppice::verify
