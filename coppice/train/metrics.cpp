#include "coppice/train/metrics.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/train/run_directory.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;

bool is_growth(const Json& line) {
  const Json* const event = line.find("event");
  return event != nullptr && *event == Json("growth");
}

bool has_validation(const Json& line) {
  return std::ranges::any_of(line.members(),
                             [](const auto& member) { return member.first.starts_with("validation/"); });
}

/// Removes lines after `last_step`; returns whether that step has its validation.
bool cut_back(const fs::path& path, int64_t last_step) {
  const std::string text = fs::exists(path) ? read_file(path) : std::string();
  std::string kept;
  bool validated = false;
  size_t number = 0;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string_view line(text.data() + begin, end - begin);
    const auto read = JsonReader::parse(line, cat(path, ":", ++number));
    const int64_t step = read.at("step").as_int();
    if (step > last_step || (step == last_step && is_growth(read.json()))) continue;
    validated = validated || (step == last_step && has_validation(read.json()));
    (kept += line) += '\n';
  }
  io::write_file_atomically(path, kept);
  return validated;
}

void remove_event_files(const fs::path& run) {
  for (const auto& entry : fs::directory_iterator(run)) {
    if (entry.path().filename().string().starts_with(kEventsPrefix)) fs::remove(entry.path());
  }
}

EventWriter prepare(const fs::path& run, const fs::path& metrics, std::optional<int64_t> resumed_at, bool& validated) {
  if (resumed_at) {
    validated = cut_back(metrics, *resumed_at);
  } else {
    io::write_file_atomically(metrics, "");
    remove_event_files(run);
  }
  return EventWriter(run, resumed_at);
}

}  // namespace

MetricsLog::MetricsLog(const fs::path& run, std::optional<int64_t> resumed_at)
    : path_(run / kMetricsFile), events_(prepare(run, path_, resumed_at, resumed_with_validation_)) {
  file_.open(path_, std::ios::binary | std::ios::app);
  if (!file_) throw Error(ErrorCode::kIo, cat(path_, ": cannot be opened: ", std::strerror(errno)));
}

void MetricsLog::step(int64_t step, std::span<const Scalar> values) {
  Json line = Json::object();
  line["step"] = step;
  for (const auto& [tag, value] : values) line[tag] = value;
  write_line(line);
  events_.scalars(step, values);
}

void MetricsLog::event(std::string_view name, int64_t step, const Json& fields) {
  Json line = Json::object();
  line["event"] = name;
  line["step"] = step;
  for (const auto& [key, value] : fields.members()) line[key] = value;
  write_line(line);
}

void MetricsLog::write_line(const Json& line) {
  const std::string text = line.dump() + "\n";
  if (!file_.write(text.data(), static_cast<std::streamsize>(text.size())).flush()) {
    throw Error(ErrorCode::kIo, cat(path_, ": cannot be written: ", std::strerror(errno)));
  }
}

}  // namespace coppice::train
