#pragma once

#include <string>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::verify {

/// What became of the files beside the weights.
struct FileAccount {
  int64_t equal = 0;                      ///< files that are byte for byte those of the model before
  std::vector<std::string> problems;      ///< each a sentence naming a file
  std::vector<std::string> not_compared;  ///< what there was nothing to compare with
};

/// Compares every file that a copy of a model carries over (tokenizer, generation_config.json, remote code). `complete`:
/// coppice wrote `after`, so that none may be missing; other programs save weights alone. Files that an expansion refuses are
/// problems where `before` has not the like, those that it leaves out are named.
///
/// Memory   1 MiB of each file; generation_config.json whole.
/// Throws   Error{kFormat, kIo} as io::sort_files.
FileAccount compare_files(const families::Model& before, const families::Model& after, bool complete);

}  // namespace coppice::verify
