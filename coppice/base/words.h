#pragma once

// Looking for words in names: of configuration keys, of tensors.

#include <algorithm>
#include <cctype>
#include <span>
#include <string>
#include <string_view>

namespace coppice {

/// The text with ASCII letters in lower case.
inline std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

inline bool contains(std::string_view text, std::string_view word) { return text.find(word) != text.npos; }

/// Whether one of the words stands anywhere in the text.
inline bool contains_any(std::string_view text, std::span<const std::string_view> words) {
  return std::ranges::any_of(words, [text](std::string_view word) { return contains(text, word); });
}

}  // namespace coppice
