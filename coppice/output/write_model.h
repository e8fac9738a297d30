#pragma once

// A model directory made from others: tensors, config.json, companion files, lineage.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/io/checkpoint.h"
#include "coppice/io/file_rules.h"
#include "coppice/io/partial_directory.h"
#include "coppice/output/tensors.h"

namespace coppice::output {

struct OutputSettings {
  std::filesystem::path out;
  size_t threads = 1;
  uint64_t max_shard_bytes = uint64_t{5} << 30;
  Json record;          ///< the resolved settings, kept in the lineage; null: none
  io::Part part;        ///< the share of this process; the last of all to end gives the output its name
  bool resume = false;  ///< continue what a killed run left, and leave it to be continued if this one fails
};

struct WrittenModel {
  int64_t tensors_written = 0;  ///< of the model, whoever wrote them
  uint64_t model_bytes = 0;     ///< of those tensors
  uint64_t bytes_written = 0;   ///< by this process and by the runs that it continued
  uint64_t bytes_resumed = 0;   ///< of those, what was there already
  uint64_t peak_rss_bytes = 0;
  bool optimizer_state = false;         ///< trainer/ was written too
  std::vector<uint32_t> missing_parts;  ///< that others have to write yet; none: the output is there
};

/// What is to be written, before anything is.
struct NewModel {
  std::string plan;  ///< what the computed bytes follow from besides the sources
  Json config, lineage;
  std::vector<OutputTensor> weights;
  std::optional<std::vector<OutputTensor>> optimizer = {};  ///< of trainer/, whose other file is the first source's
};

/// What lies beside the weights of the (first) source and will not be in the output, with the reasons, sorted by name.
/// `writes_optimizer`: the output has a trainer/ where the source has one.
///
/// Throws   as io::files_to_carry.
std::vector<io::JudgedFile> files_left_out(const io::Checkpoint& source, bool writes_optimizer);

/// Writes `model`, with the files of the first source that its rules carry (io/file_rules.h). `verb` names the work in the progress bar.
///
/// Memory   constant: see write_output.
/// Threads  the same bytes for any number, and for any number of parts.
/// Throws   Error{kUsage, kIo, kInterrupted}; Error{kUnsupported} for files that are refused; Error{kFormat} if a source changed meanwhile or since the run that is
///          continued; what computing throws. Nothing is left under the final name.
WrittenModel write_model(std::span<const io::Checkpoint* const> sources, const NewModel& model,
                         const OutputSettings& settings, std::string_view verb);

}  // namespace coppice::output
