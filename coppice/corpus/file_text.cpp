#include "coppice/corpus/file_text.h"

#include <algorithm>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/data/subprocess.h"
#include "coppice/data/text_stream.h"
#include "coppice/data/utf8.h"

namespace coppice::corpus {
namespace fs = std::filesystem;
namespace {

std::string run(std::vector<std::string> words, const fs::path& file, std::string_view package) {
  words.push_back(file.string());
  return data::run_program(words, file.parent_path(),
                           cat("is the Debian package ", package, " installed? Run `apt-get install ", package,
                               "` as root, or give your own text with --text DIR"));
}

/// A letter that is printed bold or underlined comes as itself or "_", backspace, itself.
std::string without_overstrikes(std::string_view printed) {
  std::string out;
  for (const char c : printed) {
    if (c == '\b')
      out.resize(out.empty() ? 0 : data::character_boundary(out, out.size() - 1));
    else
      out += c;
  }
  return out;
}

/// A line without the spaces around it, with single spaces inside; nothing of a rule between the rows of a table.
std::string plain_line(std::string_view line) {
  constexpr std::string_view kRule = "\xe2\x94\x80\xe2\x94\x80";
  std::string out;
  if (line.find(kRule) != line.npos) return out;
  for (const auto& word : split(line, ' ')) {
    if (!word.empty()) out += cat(out.empty() ? "" : " ", word);
  }
  return out;
}

}  // namespace

std::string plain_text(const fs::path& file) {
  data::TextStream stream(file);
  std::string out;
  std::vector<char> piece(1 << 20);
  while (const size_t n = stream.read(piece)) out.append(piece.data(), n);
  return out;
}

std::string code_text(const fs::path& file) { return detail::without_leading_comment(plain_text(file)); }

std::string manual_text(const fs::path& file) {
  // As wide as mandoc can, so that most paragraphs are one line.
  return detail::without_layout(run({"mandoc", "-T", "utf8", "-O", "width=1000"}, file, "mandoc"));
}

std::string pod_text(const fs::path& file) {
  return run({"pod2text", "--utf8", "--indent=0", "--width=100000", "--errors=none"}, file, "perl");
}

std::string detail::without_leading_comment(std::string_view text) {
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

std::string detail::without_layout(std::string_view printed) {
  std::vector<std::string> lines = split(without_overstrikes(printed), '\n');
  for (auto& line : lines) line = plain_line(line);
  const auto is_text = [](const std::string& line) { return !line.empty(); };
  const auto header = std::ranges::find_if(lines, is_text);
  const auto footer = std::find_if(lines.rbegin(), lines.rend(), is_text).base();
  std::string out;
  for (auto line = header; line < footer; ++line) {
    const bool repeats_blank = line->empty() && (out.empty() || out.ends_with("\n\n"));
    if (line != header && line + 1 != footer && !repeats_blank) out += *line + "\n";
  }
  if (out.ends_with("\n\n")) out.pop_back();
  return out;
}

}  // namespace coppice::corpus
