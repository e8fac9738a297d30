#include "coppice/report/run_record.h"

#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/model_directory.h"
#include "coppice/plan/lineage.h"

namespace coppice::report {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMetrics = "metrics.jsonl";
constexpr int kDeepest = 6;  // levels of subdirectories that are searched for runs

std::string read_text(const fs::path& path) {
  try {
    return read_file(path);
  } catch (const Error& error) {
    if (error.code != ErrorCode::kNotFound) throw;
    throw Error(ErrorCode::kNotFound, cat(path,
                                          ": not found; a run directory has config.toml and metrics.jsonl (give the "
                                          "directory that `train.out` made)"));
  }
}

void add_line(RunRecord& run, const JsonReader& line) {
  if (line.find("event")) {
    run.events.push_back(line);
    return;
  }
  const double step = line.at("step").as_double();
  for (const auto& [key, value] : line.json().members()) {
    if (key != "step" && value.is_number()) run.series[key].emplace_back(step, value.as_double());
  }
}

void read_metrics(RunRecord& run, const fs::path& path) {
  const std::string text = read_text(path);
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // a line that is being written
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    ++number;
    if (!line.empty()) add_line(run, JsonReader::parse(line, cat(path, ":", number)));
  }
}

void read_newest_checkpoint(RunRecord& run) {
  std::error_code none;
  fs::path newest;
  for (const auto& entry : fs::directory_iterator(run.directory / "checkpoints", none)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory(none) && name.starts_with("step-") && name > newest.filename().string())
      newest = entry.path();
  }
  if (newest.empty()) return;
  const io::ModelDirectory files(newest);
  if (files.has("config.json")) run.model = files.read_json("config.json");
  if (auto lineage = plan::read_lineage(newest)) {
    run.lineage = JsonReader(std::move(*lineage), (newest / io::kLineageFile).string());
  }
}

void find_runs(const fs::path& directory, int depth, std::vector<fs::path>& found) {
  if (fs::is_regular_file(directory / kMetrics)) {
    found.push_back(directory);
    return;
  }
  if (depth == 0) return;
  std::set<fs::path> inside;
  std::error_code unreadable;
  for (const auto& entry : fs::directory_iterator(directory, unreadable)) {
    if (entry.is_directory() && !entry.is_symlink()) inside.insert(entry.path());
  }
  for (const auto& path : inside) find_runs(path, depth - 1, found);
}

// The last `parts` parts of a path.
std::string tail(const fs::path& path, size_t parts) {
  std::vector<std::string> words;
  for (const auto& word : path) {
    if (!word.empty() && word != "/" && word != ".") words.push_back(word.string());
  }
  if (words.size() > parts) words.erase(words.begin(), words.end() - static_cast<ptrdiff_t>(parts));
  return join(words, "/");
}

void tell_apart(std::vector<RunRecord>& runs) {
  for (size_t parts = 1; parts < 16; ++parts) {
    std::set<std::string> names;
    for (auto& run : runs) names.insert(run.name = tail(fs::absolute(run.directory).lexically_normal(), parts));
    if (names.size() == runs.size()) return;
  }
}

}  // namespace

const Points* RunRecord::find(const std::string& tag) const {
  const auto found = series.find(tag);
  return found == series.end() ? nullptr : &found->second;
}

std::optional<JsonReader> RunRecord::setting(std::string_view dotted) const {
  std::optional<JsonReader> at = settings;
  for (const std::string& word : split(dotted, '.')) {
    if (at) at = at->find(word);
  }
  return at;
}

RunRecord RunRecord::read(const fs::path& directory) {
  RunRecord run;
  run.directory = directory;
  const auto plain = directory.lexically_normal();
  run.name = (plain.has_filename() ? plain : plain.parent_path()).filename().string();
  run.config_toml = read_text(directory / "config.toml");
  const std::string config = (directory / "config.toml").string();
  run.settings = JsonReader(parse_toml(run.config_toml, config), config);
  read_metrics(run, directory / kMetrics);
  read_newest_checkpoint(run);
  return run;
}

std::vector<RunRecord> read_runs(const std::vector<fs::path>& paths) {
  std::vector<fs::path> directories;
  for (const auto& path : paths) {
    const size_t before = directories.size();
    find_runs(path, kDeepest, directories);
    if (directories.size() == before) (void)read_text(path / kMetrics);  // the error says what a run directory contains
  }
  std::vector<RunRecord> runs;
  for (const auto& directory : directories) {
    const auto is_it = [&](const RunRecord& run) { return fs::equivalent(run.directory, directory); };
    if (std::ranges::none_of(runs, is_it)) runs.push_back(RunRecord::read(directory));
  }
  tell_apart(runs);
  return runs;
}

}  // namespace coppice::report
