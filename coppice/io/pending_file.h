#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

#include "coppice/base/file.h"

namespace coppice::io {

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

}  // namespace coppice::io
