#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "coppice/io/output_place.h"

namespace coppice::io {
namespace detail {
class WorkDirectory;
}

/// A file that is written from start to end under a temporary name beside the target, `.NAME.tmp-PID-N`, and then
/// renamed. The temporary file is always new: an existing file of that name is unlinked, and links are never followed.
/// The destructor removes a file that was not renamed.
///
/// Memory   1 MiB.
class PendingFile {
 public:
  /// Throws   Error{kIo}.
  explicit PendingFile(std::filesystem::path target);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  void append(std::span<const std::byte> bytes);
  /// Flushes the file to the disk under the temporary name.
  void settle();
  /// Renames the file in the directory where it was begun and flushes the rename to the disk.
  void rename();

 private:
  void flush();

  std::filesystem::path target_;
  Descriptor directory_;   ///< directory of the file, looked up once
  std::string temporary_;  ///< name there
  Descriptor file_;
  std::string buffer_;
  bool renamed_ = false;
};

/// A directory that appears under its final name complete or not at all: it is filled in the sibling `.NAME.tmp-work`,
/// fsynced and renamed. The destructor removes it if it was not committed. The constructor removes leftovers of killed
/// processes for the same target. Anything else with the sibling's name is refused and not changed.
class AtomicDirectory {
 public:
  /// Throws   Error{kIo}: no permission, or another process writes this target; Error{kUsage}: `target` exists, or the
  ///          sibling's name is taken by something else.
  explicit AtomicDirectory(OutputPlace target);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where to write.
  std::filesystem::path path() const;
  /// fsync of every file and directory in it, then rename.
  /// Throws   Error{kIo}. If only the rename failed (the target appeared in the meantime), the output is complete and
  ///          keeps the name in the message.
  void commit();

 private:
  std::unique_ptr<detail::WorkDirectory> work_;
};

/// Writes `text` to `path` by a temporary sibling, fsync and rename. Replaces an existing file. Throws Error{kIo}.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Throws   Error{kIo} with both figures if the file system of `directory` (or of its nearest parent that exists) has
///          less than `bytes` free.
void check_free_space(const std::filesystem::path& directory, uint64_t bytes);

}  // namespace coppice::io
