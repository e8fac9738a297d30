#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/options/byte_count.h"
#include "coppice/options/options.h"
#include "coppice/output/part_option.h"
#include "coppice/output/write_model.h"

namespace coppice::output {

/// How a model directory is written; the same for every command that writes one.
struct OutputOptions {
  ByteCount max_shard_bytes = ByteCount::from_text("5GB");
  std::optional<uint64_t> threads;
  std::optional<PartOption> part;
  bool resume = false;

  static constexpr auto output_fields() {
    using O = OutputOptions;
    return std::tuple{
        field("max-shard-bytes", &O::max_shard_bytes, "maximum size of a file of weights, such as 5GB"),
        field("threads", &O::threads, "CPU threads (default: all cores); the bytes written do not depend on it"),
        field("resume", &O::resume, "continue a killed run; if this run is stopped too, keep its finished work"),
        field("part", &O::part,
              "do one part of the work, such as 2/4; several processes or machines fill OUT together, and each may be "
              "restarted; auto: one part for each process that torchrun, srun or mpirun has started")};
  }

  /// Throws   Error{kUsage}: a number of threads that this machine cannot have; with `dry_run`, an option that has no
  ///          effect because nothing is written.
  void check(bool dry_run) const;

  OutputSettings settings(const std::filesystem::path& out, Json record) const;
};

/// Whether the option has a value other than that of an option left out.
bool is_given(const OptionSpec& spec);

/// The given options that determine the output, for the lineage: their meaning, never how they were spelled. Files are
/// recorded by the digest of their contents, sizes by their number of bytes. Where the output is and how the work is
/// done (threads, parts, resume, printing) is not recorded.
///
/// Throws   Error{kNotFound, kIo} for a file that cannot be read.
Json recorded_settings(std::span<const OptionSpec> specs, const OutputOptions& output);

/// Adds what was written, and where, to the object that --json prints.
void add_written(const WrittenModel& done, const std::filesystem::path& out, Json& json);

/// The size of the output: "239 tensors, 1.2 GB (400 MB by part 2/3)".
std::string size_text(const WrittenModel& done, const std::optional<PartOption>& part);

/// Whether this process says what the output is. Of the parts of a launcher's processes it is the one that completed
/// the output, so that one of them does.
bool says_result(const WrittenModel& done, const std::optional<PartOption>& part);

/// What to print after one part of several.
std::string part_text(const WrittenModel& done, const PartOption& part, const std::filesystem::path& out);

/// Reports on stderr and in `json` which files of the model directory are left out.
void tell_left_out(const std::vector<io::JudgedFile>& files, Json& json);

}  // namespace coppice::output
