#pragma once

#include <string>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::verify {

/// The result of checking the files beside the weights.
struct FileResult {
  int64_t equal = 0;                      ///< files that are byte-equal to those of the model before
  std::vector<std::string> problems;      ///< each a sentence naming a file
  std::vector<std::string> not_compared;  ///< what could not be compared
};

/// Compares every file that `expand` copies (tokenizer, generation_config.json, remote code). `complete`: coppice wrote
/// `after`, so no file may be missing; other programs may save only weights. A file that an expansion refuses is a
/// problem if `before` has no such file; files that it leaves out are listed.
///
/// Memory   1 MiB of each file; generation_config.json whole.
/// Throws   Error{kFormat, kIo} as io::sort_files.
FileResult compare_files(const families::Model& before, const families::Model& after, bool complete);

}  // namespace coppice::verify
