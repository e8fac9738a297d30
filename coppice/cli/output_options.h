#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/log.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/cli/byte_count.h"
#include "coppice/cli/thread_count.h"
#include "coppice/options/options.h"
#include "coppice/output/write_model.h"
#include "coppice/plan/lineage.h"

namespace coppice::cli {

/// How a model directory is written; the same for every command that writes one.
struct OutputOptions {
  ByteCount max_shard_bytes = ByteCount::from_text("5GB");
  std::optional<uint64_t> threads;
  std::optional<io::Part> part;
  bool resume = false;

  static constexpr auto output_fields() {
    using O = OutputOptions;
    return std::tuple{
        field("max-shard-bytes", &O::max_shard_bytes, "maximum size of a file of weights, such as 5GB"),
        field("threads", &O::threads, "CPU threads (default: all cores); the bytes written do not depend on it"),
        field("resume", &O::resume, "continue a killed run; if this run is stopped too, keep its finished work"),
        field("part", &O::part,
              "do one part of the work, such as 2/4; several processes or machines fill OUT together, and each may be "
              "restarted")};
  }

  /// Throws   Error{kUsage}.
  void check(bool dry_run) const {
    (void)thread_count(threads);
    if (!dry_run) return;
    for (const auto& [name, is_given] : {std::pair{"resume", resume}, {"part", part.has_value()}}) {
      if (is_given)
        throw Error(ErrorCode::kUsage,
                    cat("--", name, ": it has no effect here; a dry run writes nothing (leave it out)"));
    }
  }

  output::OutputSettings settings(const std::filesystem::path& out, Json record) const {
    return {.out = out,
            .threads = thread_count(threads),
            .max_shard_bytes = max_shard_bytes.bytes,
            .record = std::move(record),
            .part = part.value_or(io::Part{}),
            .resume = resume};
  }
};

/// A setting as the lineage records it: its meaning, never how it was spelled. Files are recorded by the digest of
/// their contents, sizes by their number of bytes.
///
/// Throws   Error{kNotFound, kIo} for a file that cannot be read.
inline Json recorded_setting(const OptionSpec& spec, const OutputOptions& output) {
  constexpr std::array<std::string_view, 3> kFiles = {"scores", "family-file", "router-rows"};
  const Json value = spec.write();
  if (spec.name == "max-shard-bytes") return Json(output.max_shard_bytes.bytes);
  const bool is_file = std::ranges::find(kFiles, spec.name) != kFiles.end() && value.is_string();
  return is_file ? Json(cat("sha256:", sha256_of_file(value.as_string()))) : value;
}

inline void add_written(const output::WrittenModel& done, const std::filesystem::path& out, Json& json) {
  json["out"] = out.string();
  json["tensors_written"] = done.tensors_written;
  json["model_bytes"] = done.model_bytes;
  json["bytes_written"] = done.bytes_written;
  json["bytes_resumed"] = done.bytes_resumed;
  json["missing_parts"] = Json::array_of(done.missing_parts);
  json["peak_rss_bytes"] = done.peak_rss_bytes;
}

/// The size of the output: "239 tensors, 1.2 GB (400 MB by part 2/3)".
inline std::string size_text(const output::WrittenModel& done, const std::optional<io::Part>& part) {
  const std::string all = cat(done.tensors_written, " tensors, ", bytes_text(done.model_bytes));
  return part ? cat(all, " (", bytes_text(done.bytes_written), " by part ", part->to_text(), ")") : all;
}

/// Reports on stderr and in `json` which files of the model directory are left out.
inline void tell_left_out(const std::vector<io::JudgedFile>& files, Json& json) {
  Json& list = json["left_out"] = Json::array();
  for (const io::JudgedFile& file : files) {
    list.push_back(Json::object({{"name", file.name}, {"reason", file.reason}}));
    log_warning(cat("left out: ", file.name, ": ", file.reason));
  }
}

/// Warns if the handover of the source model is not complete: the new lineage does not record its progress.
///
/// Throws   Error{kFormat} if the model's coppice.json is not a lineage.
inline void warn_of_unfinished_handover(const std::filesystem::path& model) {
  const auto warning = plan::routing_warning(model, plan::read_lineage(model));
  if (warning) log_warning(cat(*warning, "; the new model uses plain top-K routing and does not record the handover"));
}

/// What to print after one part of several.
inline std::string part_text(const output::WrittenModel& done, const io::Part& part, const std::filesystem::path& out) {
  return cat("part ", part.to_text(), " is written, ", bytes_text(done.bytes_written), "; ", shown(out.string()),
             " appears when all parts are written\n");
}

}  // namespace coppice::cli
