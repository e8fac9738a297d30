#pragma once

// A directory that is filled over a long time: by one process that may be killed and continued, or by several on one or
// more machines, each of which may be killed and restarted.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/io/output_place.h"

namespace coppice::io {

/// The share of the work that this process does: "2/3".
struct Part {
  static constexpr int64_t kMost = 99'999;
  uint32_t index = 1, count = 1;  ///< 1 <= index <= count <= kMost

  /// Throws   Error{kUsage}.
  static Part from_text(std::string_view text);
  std::string to_text() const;
  bool operator==(const Part&) const = default;
};

/// What must be the same in a continued run.
struct WorkIdentity {
  /// Identifies the output; the same for all parts. A line "NAME DIGEST" for each input that determines it; options
  /// begin with "--".
  std::string plan;
  std::string source;  ///< sizes and times of source files; the same for all runs of one part
};

/// Removes the work on `target` that ended processes have left: a sibling as PartialDirectory makes it, without a lock
/// holder. Anything else with that name stays, and nothing is said.
void remove_leftovers(const std::filesystem::path& target);

/// The names of the targets in `directory` for which there may be such work, sorted. Empty if it cannot be read.
std::vector<std::string> leftovers(const std::filesystem::path& directory);

/// The sibling `.NAME.tmp-work` of the target: `model/` is filled and renamed to the target at the end; `journals/`
/// records finished units, one file per part. Each process holds a flock that the kernel releases when it exits.
/// Leftovers without a lock holder are resumed with `resume` or several parts, and deleted otherwise. Anything else
/// with that name (a symbolic link, another user's directory, one without coppice's mark) is refused and not changed.
class PartialDirectory {
 public:
  /// Throws   Error{kUsage}: the target exists; the sibling does not belong to coppice; the work to continue was begun
  ///          with another plan or number of parts. Error{kFormat}: the source has changed since. Error{kIo}: another
  ///          process does this work; no permission.
  PartialDirectory(OutputPlace target, Part part, bool resume, WorkIdentity identity);
  /// Removes everything unless it may be continued; with `resume` or several parts finished work stays.
  ~PartialDirectory();
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;

  /// Where to write.
  std::filesystem::path path() const;
  /// The units of work that this part recorded in earlier runs.
  const std::vector<uint64_t>& done() const;
  /// Records units as done. Their bytes must be on the disk.
  ///
  /// Threads  one at a time.
  void record(std::span<const uint64_t> units);
  /// Runs `act` while no other part runs it.
  void alone(const std::function<void()>& act);
  /// The destructor will remove everything. For work whose result is stored elsewhere.
  void discard();
  /// Records this part as complete. If all parts are complete, `finish` is run by one process at a time; then every
  /// file is fsynced and the directory is renamed to the target. Returns the missing parts; empty if the target is
  /// complete.
  /// Throws   Error{kIo}, and what `finish` throws.
  std::vector<uint32_t> seal(const std::function<void()>& finish);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coppice::io
