#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice {

namespace detail {
std::string shortest_text(double value);  // reads back equal
std::string shortest_text(float value);

template <class Part>
void append(std::string& out, const Part& part) {
  if constexpr (std::same_as<Part, bool>) {
    out += part ? "true" : "false";
  } else if constexpr (std::same_as<Part, char>) {
    out += part;
  } else if constexpr (std::integral<Part>) {
    out += std::to_string(part);
  } else if constexpr (std::floating_point<Part>) {
    out += shortest_text(part);
  } else if constexpr (std::same_as<Part, std::filesystem::path>) {
    out += part.string();
  } else {
    out += std::string_view(part);
  }
}
}  // namespace detail

/// Joins its arguments into one string: text, paths, integers, floating point (shortest exact form).
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

/// "a, b, c".
std::string join(std::span<const std::string> parts, std::string_view separator = ", ");

/// Like `join`, cut after `limit` parts with ", ... (12 more)".
std::string join_some(std::span<const std::string> parts, size_t limit, std::string_view separator = ", ");

/// `text` escaped for one line of a terminal, because names and values from files can hold any bytes. Control
/// characters (below U+0020, U+007F to U+009F), line separators and characters that change the direction of writing
/// become escapes such as "\u001b"; a new line becomes "\n" and a tab "\t". Bytes that are not UTF-8 become "\udc80" to
/// "\udcff", which Python's os.fsencode turns back into the bytes. JSON stays valid and keeps its meaning, because
/// these are JSON's escapes of the same characters. Escaping twice gives the same as once.
std::string shown(std::string_view text);

/// As shown(), but new lines stay: for text whose line breaks are coppice's own.
std::string shown_lines(std::string_view text);

/// "[2, 3]": a tensor's shape.
std::string shape_text(std::span<const int64_t> shape);

/// "3.4 GiB", "12 KiB", "7 bytes".
std::string bytes_text(uint64_t bytes);

/// "1.24 B", "57.3 M", "812": a count of parameters or tokens.
std::string count_text(double count);

/// "2 h 03 min", "4 min 12 s", "8.1 s".
std::string duration_text(double seconds);

/// `value` with `digits` significant digits ("0.0123", "1.2e-07").
std::string number_text(double value, int digits = 4);

/// `value` with `decimals` places after the point.
std::string fixed_text(double value, int decimals);

/// A share as "12.3 %"; "-" if it is not finite.
std::string percent(double share, int decimals = 1);

/// The candidate with the smallest edit distance to `word`; empty if the distance of each is more than a third of the
/// word's length.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

/// `; did you mean 'x'?`, or, where nothing is near, `; known: a, b, c`.
std::string suggestion(std::string_view word, std::span<const std::string> candidates);

/// The parts of `text` between separators, including empty parts.
std::vector<std::string> split(std::string_view text, char separator);

}  // namespace coppice
