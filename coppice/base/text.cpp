#include "coppice/base/text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace coppice {
namespace {

// The shortest digits that read back as the same number, laid out as by Python's repr: with an exponent below 1e-4 and
// from 1e16 on.
template <class T>
std::string shortest(T value) {
  const T size = std::fabs(value);
  const bool plain = value == 0 || !std::isfinite(value) || (size >= T(1e-4) && size < T(1e16));
  std::array<char, 64> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific);
  return {buffer.data(), end.ptr};
}

std::string formatted(double value, std::chars_format format, int precision) {
  std::string out(static_cast<size_t>(precision) + 330, '\0');  // the largest double has 309 digits before the point
  const auto end = std::to_chars(out.data(), out.data() + out.size(), value, format, precision);
  out.resize(static_cast<size_t>(end.ptr - out.data()));
  return out;
}

// The edit distance in which a swap of two neighbours counts as one edit (optimal string alignment).
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

/// The length and the code point of the UTF-8 sequence that `text` begins with; length 0 if it is not valid.
struct Utf8 {
  size_t length = 0;
  uint32_t value = 0;
};
Utf8 first_of(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, lead};
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return {};
  uint32_t value = lead & (0xffU >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3f);
  }
  const bool is_too_long = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  if (is_too_long || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return {};
  return {length, value};
}

/// Whether a terminal would obey this character instead of showing it.
bool acts_on_terminal(uint32_t c) {
  if (c < 0x20 || (c >= 0x7f && c <= 0x9f)) return true;
  if (c == 0x061c || c == 0x200e || c == 0x200f) return true;  // marks of direction
  if (c >= 0x2028 && c <= 0x202e) return true;                 // separators of lines, embeddings, overrides
  return c >= 0x2066 && c <= 0x2069;                           // isolates
}

std::string escape(uint32_t c) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out += kHex[c >> shift & 15];
  return out;
}

std::string shown(std::string_view text, bool keeps_lines) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8 c = first_of(text);
    const size_t length = std::max<size_t>(c.length, 1);
    if (c.length == 0) {
      out += escape(0xdc00U | static_cast<unsigned char>(text[0]));
    } else if (!acts_on_terminal(c.value) || (keeps_lines && c.value == '\n')) {
      out += text.substr(0, length);
    } else {
      out += c.value == '\n' ? "\\n" : c.value == '\t' ? "\\t" : escape(c.value);
    }
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace

std::string shown(std::string_view text) { return shown(text, false); }
std::string shown_lines(std::string_view text) { return shown(text, true); }

std::string detail::shortest_text(double value) { return shortest(value); }
std::string detail::shortest_text(float value) { return shortest(value); }

std::string join(std::span<const std::string> parts, std::string_view separator) {
  return join_some(parts, parts.size(), separator);
}

std::string join_some(std::span<const std::string> parts, size_t limit, std::string_view separator) {
  std::string out;
  for (size_t i = 0; i < std::min(limit, parts.size()); ++i) {
    if (i > 0) out += separator;
    out += parts[i];
  }
  if (parts.size() > limit) out += cat(limit > 0 ? separator : "", "... (", parts.size() - limit, " more)");
  return out;
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += cat(i > 0 ? ", " : "", shape[i]);
  return out + "]";
}

std::string bytes_text(uint64_t bytes) {
  if (bytes < 1024) return cat(bytes, bytes == 1 ? " byte" : " bytes");
  constexpr std::array<std::string_view, 6> kUnits = {" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1023.5 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  std::string text = fixed_text(value, value < 99.95 ? 1 : 0);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text.append(kUnits[unit]);
}

std::string count_text(double count) {
  constexpr std::array<std::string_view, 5> kUnits = {"", " K", " M", " B", " T"};
  size_t unit = 0;
  for (; std::fabs(count) >= 999.5 && unit + 1 < kUnits.size(); ++unit) count /= 1000;
  if (unit == 0) return number_text(count, 3);
  const double size = std::fabs(count);
  return fixed_text(count, size < 9.995 ? 2 : size < 99.95 ? 1 : 0).append(kUnits[unit]);
}

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e15) return "unknown";
  if (seconds < 0.0995) return cat(std::llround(seconds * 1000), " ms");
  if (seconds < 59.95) return fixed_text(seconds, 1) + " s";
  const auto padded = [](uint64_t value) { return cat(value < 10 ? "0" : "", value); };
  const auto whole = static_cast<uint64_t>(std::llround(seconds));
  if (whole < 3600) return cat(whole / 60, " min ", padded(whole % 60), " s");
  const uint64_t minutes = (whole + 30) / 60;
  return cat(minutes / 60, " h ", padded(minutes % 60), " min");
}

std::string number_text(double value, int digits) { return formatted(value, std::chars_format::general, digits); }

std::string fixed_text(double value, int decimals) {
  std::string text = formatted(value, std::chars_format::fixed, decimals);
  const bool is_zero = text.find_first_not_of("-0.") == std::string::npos;
  return is_zero && text.starts_with('-') ? text.substr(1) : text;
}

std::string percent(double share, int decimals) {
  return std::isfinite(share) ? fixed_text(100 * share, decimals) + " %" : "-";
}

std::string nearest(std::string_view word, std::span<const std::string> candidates) {
  std::string best;
  size_t best_distance = std::string::npos;
  for (const auto& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance * 3 <= std::max(word.size(), candidate.size()) && distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string suggestion(std::string_view word, std::span<const std::string> candidates) {
  const std::string near = nearest(word, candidates);
  if (!near.empty()) return cat("; did you mean '", near, "'?");
  return candidates.empty() ? "" : cat("; known: ", join_some(candidates, 60));
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

}  // namespace coppice
