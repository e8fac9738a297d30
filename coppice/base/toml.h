#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "coppice/base/json.h"

namespace coppice {

/// A TOML file as a Json value: tables become objects, and arrays of tables become arrays of objects.
///
/// Throws   Error{kNotFound, kIo}; Error{kFormat} with file, line and column. Dates are not accepted.
Json read_toml(const std::filesystem::path& path);
/// As read_toml, from text; `source` names it in errors.
Json parse_toml(std::string_view text, std::string_view source);

/// `value` (an object) as TOML: scalars and arrays of scalars first, then tables, then arrays of tables. Nulls are left
/// out.
std::string toml_text(const Json& value);

}  // namespace coppice
