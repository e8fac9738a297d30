#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::data {

/// A new directory with an unpredictable name, which is removed with its contents by the destructor.
class ScratchDirectory {
 public:
  /// `start` is how its name begins; its parent is made if it is missing. Throws Error{kIo}.
  explicit ScratchDirectory(const std::filesystem::path& start) {
    std::error_code failure;
    std::filesystem::create_directories(start.parent_path(), failure);
    std::string name = start.string() + "XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) {
      throw Error(ErrorCode::kIo, cat(start.parent_path(),
                                      ": cannot make a directory in it (make it writable, or set TMPDIR or the cache "
                                      "to a writable directory)"));
    }
    path_ = name;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace coppice::data
