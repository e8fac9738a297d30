#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

#include "coppice/families/family_file.h"

namespace coppice::infer {

inline constexpr std::string_view kFamilyFileHelp =
    "TOML file that describes the model's family, if coppice does not know it; auto: infer it (`inspect --infer`)";
/// The value of --family-file for which the family is inferred.
inline constexpr std::string_view kAuto = "auto";

/// The family that --family-file describes, if the option was given.
class GivenFamily {
 public:
  /// With `auto` the family is inferred from the model in `directory`, unless coppice knows it; a warning says what is
  /// unknown then.
  ///
  /// Throws   as FamilyFile::read; as infer.
  GivenFamily(const std::optional<std::filesystem::path>& given, const std::filesystem::path& directory);
  const families::Family* family() const { return file_ ? &file_->family() : nullptr; }  ///< nullptr: the built-in one

 private:
  std::optional<families::FamilyFile> file_;
};

}  // namespace coppice::infer
