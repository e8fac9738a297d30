#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/log.h"
#include "coppice/base/options.h"
#include "coppice/base/text.h"
#include "coppice/cli/byte_count.h"
#include "coppice/cli/thread_count.h"
#include "coppice/upcycle/write_model.h"

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
        field("max-shard-bytes", &O::max_shard_bytes, "size of the largest file of weights, such as 5GB"),
        field("threads", &O::threads, "threads (default: all cores); the bytes do not depend on it"),
        field("resume", &O::resume, "continue what a killed run left; what this one does is kept if it is stopped"),
        field("part", &O::part,
              "this process's share, such as 2/4: several processes or machines fill OUT, any of which may be started "
              "again")};
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

  upcycle::OutputSettings settings(const std::filesystem::path& out, Json record) const {
    return {.out = out,
            .threads = thread_count(threads),
            .max_shard_bytes = max_shard_bytes.bytes,
            .record = std::move(record),
            .part = part.value_or(io::Part{}),
            .resume = resume};
  }
};

inline void add_written(const upcycle::WrittenModel& done, const std::filesystem::path& out, Json& json) {
  json["out"] = out.string();
  json["tensors_written"] = done.tensors_written;
  json["bytes_written"] = done.bytes_written;
  json["bytes_resumed"] = done.bytes_resumed;
  json["missing_parts"] = Json::array_of(done.missing_parts);
  json["peak_rss_bytes"] = done.peak_rss_bytes;
}

/// Says on stderr and in `json` what of the model directory the output will not have.
inline void tell_left_out(const std::vector<io::JudgedFile>& files, Json& json) {
  Json& list = json["left_out"] = Json::array();
  for (const io::JudgedFile& file : files) {
    list.push_back(Json::object({{"name", file.name}, {"reason", file.reason}}));
    log_warning(cat("left out: ", file.name, ": ", file.reason));
  }
}

/// Of a run that left others to do their share.
inline std::string part_text(const upcycle::WrittenModel& done, const io::Part& part,
                             const std::filesystem::path& out) {
  return cat("part ", part.to_text(), " is written, ", bytes_text(done.bytes_written), "; ", out,
             " appears when the others are\n");
}

}  // namespace coppice::cli
