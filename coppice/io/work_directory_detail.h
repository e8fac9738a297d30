#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/io/output_place.h"

namespace coppice::io::detail {

/// The sibling `.NAME.tmp-work` of a target: a directory of unfinished work that this process holds. `model/` in it is
/// filled and takes the target's name at the end. Each process holds a lock, which the kernel releases when it exits, so
/// leftovers are told from the work of a living process. A mark in the lock file tells them from directories of others:
/// a symbolic link, another user's directory or one without the mark is refused and left as it is.
class WorkDirectory {
 public:
  /// The sibling's name.
  static std::string name_of(std::string_view target);

  static constexpr const char* kModel = "model";
  static constexpr const char* kJournals = "journals";
  static constexpr const char* kAlone = "alone";  ///< a second lock, among processes that share the directory

  /// Makes the directory, or takes what an ended process left. `how`: LOCK_EX alone, LOCK_SH together with other parts.
  ///
  /// Throws   Error{kUsage}: the target exists; the name is taken by something else. Error{kIo}: another process holds
  ///          it; no permission.
  WorkDirectory(OutputPlace target, int how);
  /// Removes everything, unless it is kept or the name belongs to another process now.
  ~WorkDirectory();
  WorkDirectory(const WorkDirectory&) = delete;
  WorkDirectory& operator=(const WorkDirectory&) = delete;

  const OutputPlace& target() const { return target_; }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path model() const { return path_ / kModel; }
  std::filesystem::path journals() const { return path_ / kJournals; }
  const Descriptor& descriptor() const { return directory_; }

  bool has(const char* name) const;
  void make_directory(const char* name) const;
  /// Removes model and journals. Throws Error{kIo}.
  void clear() const;
  /// Whether the directory that has the name now is the one that this process holds.
  bool is_held() const;
  /// Whether the destructor leaves everything.
  void keep(bool stays) { stays_ = stays; }
  /// fsyncs `model`, gives it the target's name and removes the rest.
  ///
  /// Throws   Error{kIo}; where only the rename failed, the finished output stays and the message says where.
  void move_into_place();

 private:
  [[noreturn]] void refuse(std::string_view found) const;
  bool open_directory();
  bool open_lock();
  void take_lock(int how);
  void check_is_ours() const;
  void remove() const;

  OutputPlace target_;
  std::string name_;  // beside the target
  std::filesystem::path path_;
  Descriptor directory_, lock_file_;  // the name may change, but the open descriptors do not
  bool stays_ = false;
};

}  // namespace coppice::io::detail
