#pragma once

#include <filesystem>
#include <optional>

#include "coppice/base/file.h"

namespace coppice::io {

/// A lock on a directory: nobody else gets it until this object or its process ends. Nothing is written there. On file
/// systems without locks everybody gets it.
class DirectoryLock {
 public:
  /// None if somebody else has the lock. Throws Error{kIo}.
  static std::optional<DirectoryLock> take(const std::filesystem::path& directory);

 private:
  explicit DirectoryLock(Descriptor directory) : directory_(std::move(directory)) {}

  Descriptor directory_;
};

}  // namespace coppice::io
