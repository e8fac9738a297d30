#include <algorithm>
#include <array>

#include "coppice/base/text.h"
#include "coppice/data/strip_markup.h"

namespace coppice::data {
namespace {

struct Glyph {
  std::string_view name, text;
};
constexpr std::array<Glyph, 46> kGlyphs{{
    {"bu", "\xe2\x80\xa2"},
    {"em", "\xe2\x80\x94"},
    {"en", "\xe2\x80\x93"},
    {"hy", "-"},
    {"aq", "'"},
    {"dq", "\""},
    {"oq", "\xe2\x80\x98"},
    {"cq", "\xe2\x80\x99"},
    {"lq", "\xe2\x80\x9c"},
    {"rq", "\xe2\x80\x9d"},
    {"Fo", "\xc2\xab"},
    {"Fc", "\xc2\xbb"},
    {"co", "\xc2\xa9"},
    {"rg", "\xc2\xae"},
    {"tm", "\xe2\x84\xa2"},
    {"rs", "\\"},
    {"at", "@"},
    {"ha", "^"},
    {"ti", "~"},
    {"ga", "`"},
    {"sh", "#"},
    {"Do", "$"},
    {"ba", "|"},
    {"or", "|"},
    {"la", "<"},
    {"ra", ">"},
    {"de", "\xc2\xb0"},
    {"mc", "\xc2\xb5"},
    {"*m", "\xc2\xb5"},
    {"mu", "\xc3\x97"},
    {"+-", "\xc2\xb1"},
    {"<=", "\xe2\x89\xa4"},
    {">=", "\xe2\x89\xa5"},
    {"->", "\xe2\x86\x92"},
    {":a", "\xc3\xa4"},
    {":o", "\xc3\xb6"},
    {":u", "\xc3\xbc"},
    {":A", "\xc3\x84"},
    {":O", "\xc3\x96"},
    {":U", "\xc3\x9c"},
    {"ss", "\xc3\x9f"},
    {"'e", "\xc3\xa9"},
    {"`e", "\xc3\xa8"},
    {"`a", "\xc3\xa0"},
    {"^e", "\xc3\xaa"},
    {",c", "\xc3\xa7"},
}};

std::string_view glyph(std::string_view name) {
  const auto* found = std::ranges::find(kGlyphs, name, &Glyph::name);
  return found == kGlyphs.end() ? std::string_view{} : found->text;
}

/// The name behind an escape such as \f or \*: one character, (xx or [any]; `at` moves past it.
std::string_view escape_name(std::string_view text, size_t& at) {
  if (at >= text.size()) return {};
  if (text[at] == '(') {
    const auto name = text.substr(at + 1, 2);
    at = std::min(text.size(), at + 3);
    return name;
  }
  if (text[at] == '[') {
    const size_t end = std::min(text.find(']', at), text.size());
    const auto name = text.substr(at + 1, end - at - 1);
    at = std::min(text.size(), end + 1);
    return name;
  }
  return text.substr(at++, 1);
}

/// Text without escapes; a comment ends it.
std::string unescaped(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (text[at] != '\\') {
      out += text[at++];
      continue;
    }
    if (++at == text.size()) break;
    const char c = text[at++];
    switch (c) {
      case '"':
      case '#': return out;
      case '-': out += '-'; break;
      case 'e':
      case '\\': out += '\\'; break;
      case '.': out += '.'; break;
      case '\'': out += '\''; break;
      case '`': out += '`'; break;
      case ' ':
      case '~':
      case '0': out += ' '; break;
      case 't': out += '\t'; break;
      case '(':
      case '[': {
        --at;
        const auto name = escape_name(text, at);
        out += glyph(name);
        break;
      }
      case '*': {
        const auto name = escape_name(text, at);
        if (name == "lq" || name == "rq") out += glyph(name);
        break;
      }
      case 'f':
      case 'm':
      case 'M':
      case 'n':
      case 'F':
      case 'k':
      case '$': escape_name(text, at); break;
      case 's':
        if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
        escape_name(text, at);
        break;
      case 'h':
      case 'v':
      case 'w':
      case 'l':
      case 'L':
      case 'o':
      case 'D':
      case 'X': {  // an argument between equal marks
        const size_t end = at < text.size() ? text.find(text[at], at + 1) : text.npos;
        at = end == text.npos ? text.size() : end + 1;
        break;
      }
      default: break;  // \& \/ \, \| \^ \% \: \c \u \d \z \{ \}: nothing to read
    }
  }
  return out;
}

/// The arguments of a macro line, quotes resolved.
std::vector<std::string> arguments(std::string_view text) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size();) {
    if (text[at] == ' ' || text[at] == '\t') {
      ++at;
      continue;
    }
    std::string word;
    const bool quoted = text[at] == '"';
    if (quoted) ++at;
    while (at < text.size()) {
      if (text[at] == '\\' && at + 1 < text.size()) {
        word += text.substr(at, 2);
        at += 2;
      } else if (quoted && text[at] == '"') {
        if (at + 1 >= text.size() || text[at + 1] != '"') break;
        word += '"';
        at += 2;
      } else if (!quoted && (text[at] == ' ' || text[at] == '\t')) {
        break;
      } else {
        word += text[at++];
      }
    }
    ++at;
    out.push_back(unescaped(word));
  }
  return out;
}

bool any_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::ranges::find(names, name) != names.end();
}

/// Sections that hold no prose or stand in every page, in German and French.
bool is_boilerplate(const std::string& heading) {
  return any_of(heading, {"BEZEICHNUNG",
                          "\xc3\x9c"
                          "BERSICHT",
                          "\xc3\x9c"
                          "BERSETZUNG",
                          "SIEHE AUCH",
                          "Siehe auch",
                          "AUTOR",
                          "AUTOREN",
                          "COPYRIGHT",
                          "FEHLER MELDEN",
                          "FEHLERBERICHTE",
                          "VERF\xc3\x9cGBARKEIT",
                          "WARENZEICHEN",
                          "HOMEPAGE",
                          "DANKSAGUNGEN",
                          "URHEBERRECHT",
                          "KOLOPHON",
                          "NOM",
                          "SYNOPSIS",
                          "TRADUCTION",
                          "VOIR AUSSI",
                          "AUTEUR",
                          "AUTEURS",
                          "SIGNALER DES BOGUES",
                          "SIGNALEMENTS DE BOGUES",
                          "DISPONIBILIT\xc3\x89",
                          "PAGE D'ACCUEIL",
                          "REMERCIEMENTS",
                          "NAME",
                          "Name"});
}

/// One page, line by line.
class ManPage {
 public:
  void line(std::string_view text) {
    if (skip_block(text)) return;
    if (text.empty()) return end_paragraph();
    if (text.front() == '.' || text.front() == '\'') {
      text.remove_prefix(1);
      text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
      const size_t end = std::min(text.find_first_of(" \t"), text.size());
      macro(text.substr(0, end), text.substr(end));
    } else {
      say(unescaped(text));
    }
  }
  std::string text() && {
    end_paragraph();
    return std::move(out_).text();
  }

 private:
  /// Whether the line belongs to a table, an example, a macro definition or a conditional.
  bool skip_block(std::string_view text) {
    const auto opens = std::ranges::count(text, '{'), closes = std::ranges::count(text, '}');
    if (!block_end_.empty()) {
      if (block_end_ == "\\}") depth_ += opens - closes;
      if (block_end_ == "\\}" ? depth_ <= 0 : text.starts_with(block_end_)) block_end_ = {};
      return true;
    }
    std::string_view name = text;
    if (name.empty() || (name.front() != '.' && name.front() != '\'')) return false;
    name.remove_prefix(1);
    name.remove_prefix(std::min(name.find_first_not_of(" \t"), name.size()));
    name = name.substr(0, name.find_first_of(" \t"));
    struct Block {
      std::string_view begin, end;
    };
    static constexpr std::array<Block, 8> kBlocks{{{"TS", ".TE"},
                                                   {"EX", ".EE"},
                                                   {"nf", ".fi"},
                                                   {"de", ".."},
                                                   {"am", ".."},
                                                   {"de1", ".."},
                                                   {"ig", ".."},
                                                   {"EQ", ".EN"}}};
    for (const auto& block : kBlocks) {
      if (name != block.begin) continue;
      end_paragraph();
      block_end_ = block.end;
      return true;
    }
    if (name == "if" || name == "ie" || name == "el" || name == "while") {
      depth_ = opens - closes;
      if (depth_ > 0) block_end_ = "\\}";
      return true;
    }
    return false;
  }

  void macro(std::string_view name, std::string_view rest) {
    if (name == "SH" || name == "SS") {
      end_paragraph();
      const std::string heading = join(arguments(rest), " ");
      if (name == "SH") silent_ = is_boilerplate(heading);
      if (!silent_ && !heading.empty()) out_.add(heading);
    } else if (any_of(name, {"B", "I", "SM", "SB", "R"})) {
      say(join(arguments(rest), " "));
    } else if (any_of(name, {"BR", "BI", "IR", "IB", "RB", "RI"})) {
      say(join(arguments(rest), ""));
    } else if (name == "IP") {
      end_paragraph();
      if (const auto words = arguments(rest); !words.empty() && words[0].size() > 3) say(words[0]);  // not a bullet
    } else if (name == "TP" || name == "TQ") {
      end_paragraph();
      tag_ = true;
    } else if (any_of(name, {"UE", "ME"})) {
      const auto words = arguments(rest);
      if (!words.empty() && !silent_) paragraph_ += words[0];
    } else if (any_of(name, {"PP", "P", "LP", "HP", "RS", "RE", "sp", "br", "in", "fi"})) {
      end_paragraph();
    }
  }

  void say(const std::string& text) {
    if (silent_) return;
    if (!paragraph_.empty()) paragraph_ += ' ';
    paragraph_ += text;
    if (tag_) {
      if (!paragraph_.ends_with(':')) paragraph_ += ':';
      tag_ = false;
    }
  }
  void end_paragraph() {
    out_.add(detail::one_line(paragraph_));
    paragraph_.clear();
  }

  detail::Paragraphs out_;
  std::string paragraph_;
  std::string_view block_end_;
  std::ptrdiff_t depth_ = 0;
  bool silent_ = false, tag_ = false;
};

}  // namespace

std::string strip_roff(std::string_view text) {
  if (text.find("\n.Dd ") != text.npos || text.find("\n.Sh ") != text.npos) return {};
  ManPage page;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    page.line(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return std::move(page).text();
}

}  // namespace coppice::data
