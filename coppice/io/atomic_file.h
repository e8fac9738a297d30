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

/// A file written from its start to its end under a temporary name beside its own, `.NAME.tmp-PID-N`, that then takes
/// its place. The temporary file is always a new one: what had its name is unlinked, a link there is never followed. The
/// destructor of one that was not renamed removes it.
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
  /// Brings it to the disk under the temporary name.
  void settle();
  /// Gives it its name in the directory where it was begun, on the disk too when it returns.
  void rename();

 private:
  void flush();

  std::filesystem::path target_;
  Descriptor directory_;   ///< that the file lies in, looked up once
  std::string temporary_;  ///< name there
  Descriptor file_;
  std::string buffer_;
  bool renamed_ = false;
};

/// A directory that appears under its final name whole or not at all: filled below the sibling `.NAME.tmp-work`, fsynced,
/// renamed. The destructor of an uncommitted one removes what was written. What a killed process left of the same target
/// is removed at construction. Whatever else has the sibling's name is refused and stays (see PartialDirectory).
class AtomicDirectory {
 public:
  /// Throws   Error{kIo}: no permission, or another process writes this target; Error{kUsage}: `target` exists, or the
  ///          sibling's name is taken by something else.
  explicit AtomicDirectory(OutputPlace target);
  /// Of an uncommitted one, removes what was written.
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where to write.
  std::filesystem::path path() const;
  /// fsync of every file and directory in it, then rename.
  /// Throws   Error{kIo}. If only the rename failed (something appeared at the target meanwhile), what was written is
  ///          complete and stays under the name that the message gives.
  void commit();

 private:
  std::unique_ptr<detail::WorkDirectory> work_;
};

/// Writes `text` to `path` by a temporary sibling, fsync and rename. Replaces what was there. Throws Error{kIo}.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Throws   Error{kIo} with both figures if the file system of `directory` (or of its nearest parent that exists) has
///          less than `bytes` free.
void check_free_space(const std::filesystem::path& directory, uint64_t bytes);

}  // namespace coppice::io
