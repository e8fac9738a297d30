#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/json_reader.h"

namespace coppice::report {

using Points = std::vector<std::pair<double, double>>;

/// A run directory read back: config.toml, metrics.jsonl and what lies beside them. Files only, never live objects.
struct RunRecord {
  std::filesystem::path directory;
  std::string name;
  std::map<std::string, Points> series;  ///< tag -> (step, value)
  std::vector<JsonReader> events;        ///< each knows its file and line
  std::string config_toml;
  JsonReader settings{Json(), "config.toml"};
  Json model;                                  ///< config.json of the newest checkpoint; null: none is left
  JsonReader lineage{Json(), "coppice.json"};  ///< its coppice.json; null: it never grew

  /// The points of a tag; nullptr if the run did not log it (or only NaN).
  const Points* find(const std::string& tag) const;
  /// A setting by its dotted name ("train.seed"); none where config.toml does not have it.
  std::optional<JsonReader> setting(std::string_view dotted) const;

  /// Throws   Error{kNotFound}; Error{kFormat} naming file and line. A cut-off last line is dropped (the run may be
  ///          going on).
  static RunRecord read(const std::filesystem::path& directory);
};

/// The runs that the paths mean: each is a run's folder or a folder with such folders below it. Names are told apart by
/// as much of the path as that takes.
///
/// Throws   Error{kNotFound} for a path without a run; what RunRecord::read throws.
std::vector<RunRecord> read_runs(const std::vector<std::filesystem::path>& paths);

}  // namespace coppice::report
