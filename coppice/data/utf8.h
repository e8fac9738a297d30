#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace coppice::data {

/// The first byte that does not belong to well-formed UTF-8 (overlong forms, surrogates and values over U+10FFFF do
/// not); none if all do.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// The largest cut at or before `at` that splits no character of well-formed UTF-8.
size_t character_boundary(std::string_view text, size_t at);

}  // namespace coppice::data
