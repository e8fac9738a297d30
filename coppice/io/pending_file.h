#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

#include "coppice/base/file.h"

namespace coppice::io {

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

}  // namespace coppice::io
