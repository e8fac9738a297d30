#include "coppice/output/output_options.h"

#include <algorithm>
#include <array>
#include <utility>

#include "coppice/base/log.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/options/thread_count.h"

namespace coppice::output {
namespace {

Json recorded_setting(const OptionSpec& spec, const OutputOptions& output) {
  constexpr std::array<std::string_view, 3> kFiles = {"scores", "family-file", "router-rows"};
  const Json value = spec.write();
  if (spec.name == "max-shard-bytes") return Json(output.max_shard_bytes.bytes);
  const bool is_inferred = spec.name == "family-file" && value == Json("auto");  // no file
  const bool is_file = std::ranges::find(kFiles, spec.name) != kFiles.end() && value.is_string() && !is_inferred;
  return is_file ? Json(cat("sha256:", sha256_of_file(value.as_string()))) : value;
}

}  // namespace

void OutputOptions::check(bool dry_run) const {
  (void)thread_count(threads);
  if (!dry_run) return;
  for (const auto& [name, is_given] : {std::pair{"resume", resume}, {"part", part.has_value()}}) {
    if (is_given) refuse_option(name, "a dry run writes nothing");
  }
}

OutputSettings OutputOptions::settings(const std::filesystem::path& out, Json record) const {
  return {.out = out,
          .threads = thread_count(threads),
          .max_shard_bytes = max_shard_bytes.bytes,
          .record = std::move(record),
          .part = part ? part->part : io::Part{},
          .resume = resume};
}

bool is_given(const OptionSpec& spec) {
  const Json value = spec.write();
  if (spec.is_list) return !value.items().empty();
  return spec.is_flag ? value.as_bool() : !value.is_null();
}

Json recorded_settings(std::span<const OptionSpec> specs, const OutputOptions& output) {
  constexpr std::array<std::string_view, 7> kNotRecorded = {"MODEL", "OUT",     "threads", "resume",
                                                            "part",  "dry-run", "json"};
  Json record = Json::object();
  for (const OptionSpec& spec : specs) {
    if (std::ranges::find(kNotRecorded, spec.name) == kNotRecorded.end() && is_given(spec))
      record[spec.name] = recorded_setting(spec, output);
  }
  return record;
}

void add_written(const WrittenModel& done, const std::filesystem::path& out, Json& json) {
  json["out"] = out.string();
  json["tensors_written"] = done.tensors_written;
  json["model_bytes"] = done.model_bytes;
  json["bytes_written"] = done.bytes_written;
  json["bytes_resumed"] = done.bytes_resumed;
  json["missing_parts"] = Json::array_of(done.missing_parts);
  json["peak_rss_bytes"] = done.peak_rss_bytes;
}

std::string size_text(const WrittenModel& done, const std::optional<PartOption>& part) {
  const std::string all = cat(done.tensors_written, " tensors, ", bytes_text(done.model_bytes));
  return part ? cat(all, " (", bytes_text(done.bytes_written), " by part ", part->part.to_text(), ")") : all;
}

bool says_result(const WrittenModel& done, const std::optional<PartOption>& part) {
  return part && part->is_auto ? done.is_completed_here : done.missing_parts.empty();
}

std::string part_text(const WrittenModel& done, const PartOption& part, const std::filesystem::path& out) {
  return cat("part ", part.part.to_text(), " is written, ", bytes_text(done.bytes_written), "; ", shown(out.string()),
             " appears when all parts are written\n");
}

void tell_left_out(const std::vector<io::JudgedFile>& files, Json& json) {
  Json& list = json["left_out"] = Json::array();
  for (const io::JudgedFile& file : files) {
    list.push_back(Json::object({{"name", file.name}, {"reason", file.reason}}));
    log_warning(cat("left out: ", file.name, ": ", file.reason));
  }
}

}  // namespace coppice::output
