#pragma once

// Results of reading a whole .bin, cached beside it in PREFIX.checked.json.

#include <filesystem>

#include "coppice/base/json.h"

namespace coppice::data::detail {

inline constexpr const char* kLeastId = "least_id";        ///< of all tokens
inline constexpr const char* kGreatestId = "greatest_id";  ///< of all tokens
inline constexpr const char* kSha256 = "sha256";           ///< of the .bin

/// An object with the size and modification time of the .bin, and the cached results if both are unchanged.
///
/// Throws   Error{kNotFound, kIo} if there is no .bin.
Json known_of(const std::filesystem::path& prefix);

/// Saves `known`; if it cannot be written, logs a warning.
void remember(const std::filesystem::path& prefix, const Json& known);

}  // namespace coppice::data::detail
