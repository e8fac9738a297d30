#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/report/html.h"

namespace coppice::report {

/// A run directory read back: config.toml and metrics.jsonl. Files only, never live objects.
struct RunRecord {
  std::filesystem::path directory;
  std::string name;
  std::map<std::string, std::vector<std::pair<double, double>>> series;  ///< tag -> (step, value)
  std::vector<Json> events;
  std::string config_toml;

  /// Throws   Error{kNotFound}; Error{kFormat} naming file and line. A cut-off last line is dropped (the run may be
  ///          going on).
  static RunRecord read(const std::filesystem::path& directory);
};

/// The page of `coppice report RUN...`.
Page runs_page(const std::vector<RunRecord>& runs);

}  // namespace coppice::report
