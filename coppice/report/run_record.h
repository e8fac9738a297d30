#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/json_reader.h"

namespace coppice::report {

using Points = std::vector<std::pair<double, double>>;

/// A run directory read back: config.toml, metrics.jsonl and the files beside them. It uses only files, no live
/// objects.
struct RunRecord {
  std::filesystem::path directory;
  std::string name;
  std::map<std::string, Points> series;  ///< tag -> (step, value)
  std::vector<JsonReader> events;        ///< each knows its file and line
  std::string config_toml;
  JsonReader settings{Json(), "config.toml"};
  Json model;                                  ///< config.json of the newest checkpoint; null if there is no checkpoint
  JsonReader lineage{Json(), "coppice.json"};  ///< its coppice.json; null if the model was never expanded

  /// The points of a tag; nullptr if the run did not log it (or only NaN).
  const Points* find(const std::string& tag) const;
  /// A setting by its dotted name ("train.seed"); none if config.toml does not have it.
  std::optional<JsonReader> setting(std::string_view dotted) const;

  /// Throws   Error{kNotFound}; Error{kFormat} naming file and line. An incomplete last line is dropped (the run may be
  ///          still active).
  static RunRecord read(const std::filesystem::path& directory);
};

/// Reads the runs at the given paths: each path is a run's directory, or a directory that contains some. Names have as
/// many parts of the path as are needed to make them unique.
///
/// Throws   Error{kNotFound} for a path without a run; what RunRecord::read throws.
std::vector<RunRecord> read_runs(const std::vector<std::filesystem::path>& paths);

}  // namespace coppice::report
