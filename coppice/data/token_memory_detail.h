#pragma once

// What reading a whole .bin has told, remembered beside it in PREFIX.checked.json.

#include <filesystem>

#include "coppice/base/json.h"

namespace coppice::data::detail {

inline constexpr const char* kLeastId = "least_id";        ///< of all tokens
inline constexpr const char* kGreatestId = "greatest_id";  ///< of all tokens
inline constexpr const char* kSha256 = "sha256";           ///< of the .bin

/// An object with the size and time of change of the .bin, and what is remembered of a .bin that had both.
///
/// Throws   Error{kNotFound, kIo} if there is no .bin.
Json known_of(const std::filesystem::path& prefix);

/// Remembers `known`; where nothing can be written, a warning says so.
void remember(const std::filesystem::path& prefix, const Json& known);

}  // namespace coppice::data::detail
