#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/plan/utility.h"
#include "coppice/report/run_record.h"

namespace coppice::report {

/// How tokens are distributed over the experts: [domain][layer][expert], counts or shares.
using Routing = std::map<std::string, std::map<int64_t, std::vector<double>>>;

/// The basis of an expansion: utilities and, if known, the parents.
struct GrowthRecord {
  std::string name;  ///< of the run and the step
  std::optional<plan::Scores> scores;
  std::map<int64_t, std::vector<uint32_t>> parents;  ///< layer -> parent of each expert afterwards
};

/// Files beside the metrics of a run.
struct Attachments {
  std::vector<GrowthRecord> growths;       ///< RUN/growth-step-*/, RUN/scores.json, scores.json beside RUN
  std::map<std::string, Routing> routing;  ///< run -> routing of its newest event "routing", or of a demo's result.json
};

/// Throws   Error{kFormat} naming a file that claims to be coppice's and is not.
Attachments read_attachments(const std::vector<RunRecord>& runs);

/// layer -> parents of the lineage's step `index`; empty if the step has no parents.
std::map<int64_t, std::vector<uint32_t>> lineage_parents(const JsonReader& lineage, size_t index);
size_t lineage_steps(const JsonReader& lineage);

}  // namespace coppice::report
