#pragma once

// A directory that takes long to fill: by one process that may be killed and continued, or by several, on one machine
// or many, of which any may die and be started again.

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

/// Which share of the work is this process's: "2/3".
struct Part {
  uint32_t index = 1, count = 1;  ///< 1 <= index <= count

  /// Throws   Error{kUsage}.
  static Part from_text(std::string_view text);
  std::string to_text() const;
  bool operator==(const Part&) const = default;
};

/// What a continued run must share with the one before.
struct WorkIdentity {
  /// What is to be written: equal among parts. A line "NAME DIGEST" for each thing that it follows from; options begin
  /// with "--".
  std::string plan;
  std::string source;  ///< sizes and times of what is read: equal among the runs of one part
};

/// The sibling `.NAME.tmp-work` of the target: `model/` is filled and renamed to the target at the end; `journals/` says
/// what is done, a file for each part. Locks that end with their process tell the living from the dead: what a dead one
/// left is continued where asked for (`resume`, or more than one part), else removed. Whatever else has that name (a
/// symbolic link, another user's directory, one without the mark of such work) is refused and left as it is.
class PartialDirectory {
 public:
  /// Throws   Error{kUsage}: the target exists; the sibling is not of such work; what is there to continue was begun with another plan or number of
  ///          parts. Error{kFormat}: the source has changed since. Error{kIo}: another process does this work; no
  ///          permission.
  PartialDirectory(OutputPlace target, Part part, bool resume, WorkIdentity identity);
  /// Removes everything, unless it may be continued: with `resume` or several parts what is done stays.
  ~PartialDirectory();
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;

  /// Where to write.
  std::filesystem::path path() const;
  /// Units of work that this part has done, as `record` was told in earlier runs.
  const std::vector<uint64_t>& done() const;
  /// Remembers units as done. What they wrote must be on the disk.
  ///
  /// Threads  one at a time.
  void record(std::span<const uint64_t> units);
  /// Runs `act` while no other part does.
  void alone(const std::function<void()>& act);
  /// From here on there is nothing to continue: the destructor removes everything. For work whose result is elsewhere.
  void discard();
  /// Remembers this part as complete. If all parts are, `finish` is run by exactly one process at a time, then every
  /// file is fsynced and the directory takes its final name.
  /// Returns the parts that are missing; none: the target is there.
  /// Throws   Error{kIo}, and what `finish` throws.
  std::vector<uint32_t> seal(const std::function<void()>& finish);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coppice::io
