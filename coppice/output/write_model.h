#pragma once

// Writes a model directory made from others: tensors, config.json, companion files, lineage.

#include <cstdint>
#include <filesystem>
#include <map>
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
  Json record;          ///< the resolved settings for the lineage; null: none
  io::Part part;        ///< the share of this process; the last one to end renames the output
  bool resume = false;  ///< continue a killed run, and keep finished work if this one fails
};

struct WrittenModel {
  int64_t tensors_written = 0;  ///< tensors of the model, written by all parts
  uint64_t model_bytes = 0;     ///< of those tensors
  uint64_t bytes_written = 0;   ///< by this process and by the runs that it continued
  uint64_t bytes_resumed = 0;   ///< of those, bytes of earlier runs
  uint64_t peak_rss_bytes = 0;
  bool optimizer_state = false;         ///< trainer/ was written too
  std::vector<uint32_t> missing_parts;  ///< parts that are not written yet; empty if the output is complete
  bool is_completed_here = false;       ///< this process gave the output its name
};

/// The model to be written.
struct NewModel {
  std::string plan;  ///< what determines the computed bytes besides the sources
  Json config, lineage;
  std::vector<OutputTensor> weights;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};  ///< of every file of weights
  /// Tensors of trainer/; its other file is copied from the first source.
  std::optional<std::vector<OutputTensor>> optimizer = {};
};

/// The files beside the weights of the (first) source that will not be in the output, with the reasons, sorted by name.
/// `writes_optimizer`: the output has a trainer/ if the source has one.
///
/// Throws   as io::files_to_carry.
std::vector<io::JudgedFile> files_left_out(const io::Checkpoint& source, bool writes_optimizer);

/// Writes `model`, with the files of the first source that are copied (io/file_rules.h). `verb` names the work in the
/// progress bar.
///
/// Memory   constant: see write_output.
/// Threads  the bytes do not depend on the number of threads or parts.
/// Throws   Error{kUsage, kIo, kInterrupted}; Error{kUnsupported} for files that are refused; Error{kFormat} if a
///          source changed during this run or since the run that it continues; what computing throws. After an
///          exception the final name does not exist.
WrittenModel write_model(std::span<const io::Checkpoint* const> sources, const NewModel& model,
                         const OutputSettings& settings, std::string_view verb);

}  // namespace coppice::output
