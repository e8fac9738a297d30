#include "coppice/report/run_record.h"

#include <fstream>
#include <sstream>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::report {
namespace {

std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    throw Error(
        ErrorCode::kNotFound,
        cat(path,
            ": not found; a run folder holds config.toml and metrics.jsonl (name the folder that `train.out` made)"));
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void add_line(RunRecord& run, const Json& line) {
  if (line.find("event") != nullptr) {
    run.events.push_back(line);
    return;
  }
  const double step = line.at("step").as_double();
  for (const auto& [key, value] : line.members()) {
    if (key != "step" && value.is_number()) run.series[key].emplace_back(step, value.as_double());
  }
}

}  // namespace

RunRecord RunRecord::read(const std::filesystem::path& directory) {
  RunRecord run;
  run.directory = directory;
  const auto plain = directory.lexically_normal();
  run.name = (plain.has_filename() ? plain : plain.parent_path()).filename().string();
  run.config_toml = read_text(directory / "config.toml");
  const auto path = directory / "metrics.jsonl";
  const std::string text = read_text(path);
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // a line that is being written
    ++number;
    const std::string_view line(text.data() + begin, end - begin);
    if (!line.empty()) add_line(run, Json::parse(line, cat(path, " line ", number)));
    begin = end + 1;
  }
  return run;
}

}  // namespace coppice::report
