#include <array>

#include "coppice/data/strip_markup.h"

namespace coppice::data {
namespace {

/// The letters that GCIDE spells out in brackets; any other bracket is a label or an etymology.
struct Letter {
  std::string_view name, text;
};
constexpr std::array<Letter, 42> kLetters{{
    {"ae", "\xc3\xa6"},  {"AE", "\xc3\x86"},     {"oe", "\xc5\x93"},  {"OE", "\xc5\x92"},  {"aum", "\xc3\xa4"},
    {"eum", "\xc3\xab"}, {"ium", "\xc3\xaf"},    {"oum", "\xc3\xb6"}, {"uum", "\xc3\xbc"}, {"\"a", "\xc3\xa4"},
    {"\"e", "\xc3\xab"}, {"\"i", "\xc3\xaf"},    {"\"o", "\xc3\xb6"}, {"\"u", "\xc3\xbc"}, {"\"O", "\xc3\x96"},
    {"'a", "\xc3\xa1"},  {"'e", "\xc3\xa9"},     {"'i", "\xc3\xad"},  {"'o", "\xc3\xb3"},  {"'u", "\xc3\xba"},
    {"'E", "\xc3\x89"},  {"`a", "\xc3\xa0"},     {"`e", "\xc3\xa8"},  {"`i", "\xc3\xac"},  {"`o", "\xc3\xb2"},
    {"`u", "\xc3\xb9"},  {"^a", "\xc3\xa2"},     {"^e", "\xc3\xaa"},  {"^i", "\xc3\xae"},  {"^o", "\xc3\xb4"},
    {"^u", "\xc3\xbb"},  {",c", "\xc3\xa7"},     {",C", "\xc3\x87"},  {"~n", "\xc3\xb1"},  {"ccedil", "\xc3\xa7"},
    {"=a", "\xc4\x81"},  {"=e", "\xc4\x93"},     {"=i", "\xc4\xab"},  {"=o", "\xc5\x8d"},  {"=u", "\xc5\xab"},
    {"deg", "\xc2\xb0"}, {"frac12", "\xc2\xbd"},
}};

std::string with_letters(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[') {
      const size_t end = text.find(']', i);
      const auto name = end == text.npos ? std::string_view{} : text.substr(i + 1, end - i - 1);
      bool known = false;
      for (const auto& letter : kLetters) {
        if (letter.name != name) continue;
        out += letter.text;
        known = true;
        break;
      }
      if (known) {
        i = end;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

/// Without what stands in brackets, and without the braces of cross-references and the backslashes of stress marks.
std::string without_brackets(std::string_view text) {
  std::string out;
  int depth = 0;
  for (const char c : text) {
    if (c == '[')
      ++depth;
    else if (c == ']')
      depth -= depth > 0 ? 1 : 0;
    else if (depth == 0 && c != '{' && c != '}' && c != '\\')
      out += c;
  }
  return out;
}

/// No space before a stop or comma, none doubled.
std::string tidied(std::string_view text) {
  std::string out;
  for (const char c : detail::one_line(text)) {
    if ((c == ',' || c == ';' || c == '.') && !out.empty() && out.back() == ' ') out.pop_back();
    out += c;
  }
  return out;
}

/// `Lark \Lark\ (l[aum]rk), n. [...]` -> `Lark, n. [...]`.
std::string without_pronunciation(const std::string& entry) {
  const size_t first = entry.find('\\'), second = entry.find('\\', first + 1);
  if (second == entry.npos) return entry;
  std::string rest = entry.substr(second + 1);
  const size_t open = rest.find_first_not_of(" \n");
  if (open != rest.npos && rest[open] == '(') {
    int depth = 0;
    for (size_t i = open; i < rest.size(); ++i) {
      depth += rest[i] == '(' ? 1 : rest[i] == ')' ? -1 : 0;
      if (depth == 0) {
        rest.erase(0, i + 1);
        break;
      }
    }
  }
  return entry.substr(0, first) + rest;
}

std::string plain_entry(const std::string& raw) {
  const std::string text = without_brackets(with_letters(without_pronunciation(raw)));
  detail::Paragraphs out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find("\n\n", begin), text.size());
    out.add(tidied(std::string_view(text).substr(begin, end - begin)));
    begin = end + 2;
  }
  return std::move(out).text();
}

}  // namespace

std::vector<std::string> split_dictionary(std::string_view text) {
  std::vector<std::string> out;
  std::string entry;
  bool after_blank = true;
  const auto flush = [&] {
    if (!entry.empty()) out.push_back(plain_entry(entry));
    entry.clear();
  };
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const auto line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const bool blank = line.find_first_not_of(" \t") == line.npos;
    if (after_blank && !blank && line.front() != ' ') {
      flush();
      // What has no stress marks is about the database.
      const size_t mark = line.find(" \\");
      if (mark != line.npos && line.find('\\', mark + 2) != line.npos) entry = line;
    } else if (!entry.empty()) {
      entry += "\n";
      if (!blank) entry += line;
    }
    after_blank = blank;
  }
  flush();
  return out;
}

}  // namespace coppice::data
