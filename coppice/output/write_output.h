#pragma once

#include <cstdint>
#include <string_view>

#include "coppice/io/partial_directory.h"
#include "coppice/output/units.h"

namespace coppice::output {

struct WrittenBytes {
  uint64_t written = 0;  ///< written by this part in this run
  uint64_t resumed = 0;  ///< written by this part in earlier runs
};

/// Writes this part's share of `layout` below `out.path()`: all files get their length and their header first, then
/// `threads` threads compute while two more move bytes. Finished units are recorded in `out` after their bytes are on
/// the disk; units recorded in an earlier run are skipped. The bytes do not depend on threads, parts and runs. `verb`
/// names the work in the progress bar.
///
/// Memory   4 MiB per thread, and the computed pieces in progress: several together have at most 32 MiB of output, plus
///          what their computation needs.
/// Throws   Error{kIo, kInterrupted}, and what `compute` throws; finished units are recorded before.
WrittenBytes write_output(io::PartialDirectory& out, const OutputLayout& layout, io::Part part, size_t threads,
                          std::string_view verb = "expand");

}  // namespace coppice::output
