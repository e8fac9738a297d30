#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "coppice/io/output_place.h"

namespace coppice::io {

/// A directory that appears under its final name complete or not at all: it is filled as the sibling `.NAME.tmp-PID`,
/// fsynced and renamed. The destructor removes it if it was not committed. The constructor removes leftovers of killed
/// processes for the same target; it recognises them by a mark file, a lock that the kernel releases with its process,
/// and the missing process. Directories without the mark are not touched.
class AtomicDirectory {
 public:
  /// Throws   Error{kIo} (no permission); Error{kUsage} if `target` exists.
  explicit AtomicDirectory(OutputPlace target);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where to write.
  const std::filesystem::path& path() const { return temporary_; }
  /// fsync of every file and directory in it, then rename.
  /// Throws   Error{kIo}. If only the rename failed (the target appeared in the meantime), the output is complete and
  ///          keeps the name in the message.
  void commit();

 private:
  OutputPlace target_;
  std::string name_;  ///< name of the temporary directory, beside the target
  std::filesystem::path temporary_;
  Descriptor lock_;
  bool committed_ = false;
};

/// Writes `text` to `path` by a temporary sibling, fsync and rename. Replaces an existing file. Throws Error{kIo}.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Whole file as text.
///
/// Memory   the text.
/// Throws   Error{kNotFound, kIo}; Error{kFormat} if it is not a regular file.
std::string read_file(const std::filesystem::path& path);

/// Throws   Error{kIo} with both figures if the file system of `directory` (or of its nearest parent that exists) has
///          less than `bytes` free.
void check_free_space(const std::filesystem::path& directory, uint64_t bytes);

}  // namespace coppice::io
