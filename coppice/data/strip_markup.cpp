#include "coppice/data/strip_markup.h"

namespace coppice::data {

std::string detail::one_line(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!space)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

void detail::Paragraphs::add(std::string paragraph) {
  while (!paragraph.empty() && paragraph.back() == '\n') paragraph.pop_back();
  if (paragraph.empty()) return;
  if (!out_.empty()) out_ += "\n";
  out_ += paragraph;
  out_ += "\n";
}

std::string strip_code(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != '\r') out += c;
  }
  size_t at = out.find_first_not_of(" \t\n");
  while (at != out.npos) {
    const std::string_view rest = std::string_view(out).substr(at);
    size_t end = rest.npos;
    if (rest.starts_with("/*")) {
      end = rest.find("*/");
      if (end != rest.npos) end += 2;
    } else if (rest.starts_with("//") || rest.starts_with("# ") || rest.starts_with("#!") || rest.starts_with("#\n") ||
               rest.starts_with("##")) {
      end = rest.find('\n');
    } else {
      return out.substr(at);
    }
    if (end == rest.npos) return {};
    at = out.find_first_not_of(" \t\n", at + end);
  }
  return {};
}

}  // namespace coppice::data
