#pragma once

#include <filesystem>
#include <optional>

#include "coppice/base/file.h"

namespace coppice::io {

/// A directory that this object holds: nobody else gets a lock on it until the object or its process ends. Nothing is
/// written there. File systems without locks let everybody pass.
class DirectoryLock {
 public:
  /// Nothing if somebody else holds it. Throws Error{kIo}.
  static std::optional<DirectoryLock> take(const std::filesystem::path& directory);

 private:
  explicit DirectoryLock(Descriptor directory) : directory_(std::move(directory)) {}

  Descriptor directory_;
};

}  // namespace coppice::io
