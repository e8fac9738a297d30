#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

#include "coppice/families/family_file.h"

namespace coppice::families {

inline constexpr std::string_view kFamilyFileHelp =
    "TOML file that describes the model's family, if coppice does not know it";

/// The family that --family-file describes, if the option was given.
class GivenFamily {
 public:
  explicit GivenFamily(const std::optional<std::filesystem::path>& path) {
    if (path) file_ = FamilyFile::read(*path);
  }
  const Family* family() const { return file_ ? &file_->family() : nullptr; }

 private:
  std::optional<FamilyFile> file_;
};

}  // namespace coppice::families
