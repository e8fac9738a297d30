#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"
#include "coppice/io/checkpoint.h"
#include "coppice/io/journal_detail.h"

namespace coppice::io::detail {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kDone = "done", kComplete = "complete";

std::optional<Journal::Content> header_of(std::string_view line) {
  try {
    const Json json = Json::parse(line, "journal");
    if (json.at("coppice_journal").as_int() != 1) return std::nullopt;
    return Journal::Content{.part = Part::from_text(json.at("part").as_string()),
                            .identity = {.plan = json.at("plan").as_string(), .source = json.at("source").as_string()}};
  } catch (const Error&) {
    return std::nullopt;  // incomplete: the process was killed while it wrote the line
  }
}

// The units of "done 4 5 6"; none if the line is anything else.
std::optional<std::vector<uint64_t>> units_of(std::string_view line) {
  if (!line.starts_with(kDone)) return std::nullopt;
  std::vector<uint64_t> units;
  const char* at = line.data() + kDone.size();
  const char* const end = line.data() + line.size();
  while (at != end) {
    if (*at != ' ') return std::nullopt;
    uint64_t unit = 0;
    const auto [stop, error] = std::from_chars(at + 1, end, unit);
    if (error != std::errc()) return std::nullopt;
    units.push_back(unit);
    at = stop;
  }
  return units;
}

}  // namespace

std::string Journal::name(Part part) { return numbered("part", part.index, part.count); }

std::optional<Journal::Content> Journal::look(const fs::path& path) {
  std::error_code missing;
  if (!fs::is_regular_file(fs::symlink_status(path, missing))) return std::nullopt;
  return parse(read_file(path));
}

std::optional<Journal::Content> Journal::parse(std::string_view text) {
  const auto line_at = [&](size_t begin) -> std::optional<std::string_view> {
    const auto end = text.find('\n', begin);
    return end == text.npos ? std::nullopt : std::optional(text.substr(begin, end - begin));
  };
  const auto first = line_at(0);
  auto content = first ? header_of(*first) : std::nullopt;
  if (!content) return std::nullopt;
  content->valid_bytes = first->size() + 1;
  while (const auto line = line_at(content->valid_bytes)) {
    if (const auto units = units_of(*line)) {
      content->done.insert(content->done.end(), units->begin(), units->end());
    } else if (*line == kComplete) {
      content->complete = true;
    } else {
      break;
    }
    content->valid_bytes += line->size() + 1;
  }
  return content;
}

Journal::Journal(fs::path path, Part part, const WorkIdentity& identity) : path_(std::move(path)) {
  file_ = Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0666));
  if (!file_) throw_io(path_.string(), "open it", errno);
  if (lock(file_, LOCK_EX | LOCK_NB) == Lock::kHeldByAnother) {  // before anything is changed
    throw Error(ErrorCode::kIo,
                cat(path_, ": another process works on part ", part.to_text(), " (wait for it to end)"));
  }
  const auto before = look(path_);
  if (::ftruncate(file_.get(), static_cast<off_t>(before ? before->valid_bytes : 0)) != 0) {
    throw_io(path_.string(), "cut it", errno);
  }
  if (before) {
    done_ = before->done;
    return;
  }
  Json header = Json::object();
  header["coppice_journal"] = 1;
  header["part"] = part.to_text();
  header["plan"] = identity.plan;
  header["source"] = identity.source;
  append(cat(header.dump(), "\n"));
  sync_directory(parent_of(path_));
}

void Journal::record(std::span<const uint64_t> units) {
  if (units.empty()) return;
  std::string line(kDone);
  for (const uint64_t unit : units) line += cat(" ", unit);
  append(line + "\n");
}

void Journal::complete() { append(cat(kComplete, "\n")); }

void Journal::append(std::string_view line) {
  const int number = write_all(file_.get(), std::as_bytes(std::span(line)), -1);
  if (number != 0) throw_io(path_.string(), "write it", number);
  sync(file_, path_);
}

}  // namespace coppice::io::detail
