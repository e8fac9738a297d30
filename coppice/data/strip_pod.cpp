#include <algorithm>
#include <array>
#include <cctype>

#include "coppice/data/strip_markup.h"

namespace coppice::data {

namespace {

std::string escaped_character(std::string_view name) {
  struct Entity {
    std::string_view name, text;
  };
  static constexpr std::array<Entity, 14> kEntities{{{"lt", "<"},
                                                     {"gt", ">"},
                                                     {"verbar", "|"},
                                                     {"sol", "/"},
                                                     {"amp", "&"},
                                                     {"quot", "\""},
                                                     {"eacute", "\xc3\xa9"},
                                                     {"egrave", "\xc3\xa8"},
                                                     {"auml", "\xc3\xa4"},
                                                     {"ouml", "\xc3\xb6"},
                                                     {"uuml", "\xc3\xbc"},
                                                     {"szlig", "\xc3\x9f"},
                                                     {"ccedil", "\xc3\xa7"},
                                                     {"oslash", "\xc3\xb8"}}};
  for (const auto& entity : kEntities) {
    if (entity.name == name) return std::string(entity.text);
  }
  return {};
}

/// Formatting codes such as B<bold>, C<< a > b >> and L<text|target>, nested as they come.
class PodText {
 public:
  explicit PodText(std::string_view text) : text_(text) {}
  std::string plain() { return until(""); }

 private:
  /// Everything up to `close`, which is passed over; all that is left if `close` is empty or missing.
  std::string until(std::string_view close) {
    std::string out;
    while (at_ < text_.size()) {
      if (!close.empty() && text_.substr(at_).starts_with(close)) {
        at_ += close.size();
        return out;
      }
      if (std::isupper(static_cast<unsigned char>(text_[at_])) != 0 && at_ + 1 < text_.size() &&
          text_[at_ + 1] == '<') {
        out += code();
      } else {
        out += text_[at_++];
      }
    }
    return out;
  }

  std::string code() {
    const char letter = text_[at_++];
    size_t brackets = 0;
    while (at_ + brackets < text_.size() && text_[at_ + brackets] == '<') ++brackets;
    const bool wide = brackets > 1 && at_ + brackets < text_.size() &&
                      std::isspace(static_cast<unsigned char>(text_[at_ + brackets])) != 0;
    if (!wide) brackets = 1;
    at_ += brackets;
    std::string inner = until(std::string(brackets, '>'));
    if (wide) inner = detail::one_line(inner);
    if (letter == 'X' || letter == 'Z') return {};
    if (letter == 'E') return escaped_character(inner);
    if (letter == 'L') return inner.substr(0, inner.find('|'));
    return inner;
  }

  std::string_view text_;
  size_t at_ = 0;
};

std::string_view first_word(std::string_view text) { return text.substr(0, text.find_first_of(" \t\n")); }

}  // namespace

std::string strip_pod(std::string_view text) {
  detail::Paragraphs out;
  std::string_view skipping;  // the format of a =begin block
  bool after_cut = false;
  while (!text.empty()) {
    // A paragraph ends at a line that is empty or blank.
    size_t end = 0;
    while (end < text.size()) {
      const size_t newline = text.find('\n', end);
      const size_t next = newline == text.npos ? text.size() : newline + 1;
      const bool blank = text.substr(end, next - end).find_first_not_of(" \t\r\n") == std::string_view::npos;
      end = next;
      if (blank) break;
    }
    const auto paragraph = text.substr(0, end);
    text.remove_prefix(end);
    if (paragraph.find_first_not_of(" \t\r\n") == std::string_view::npos) continue;

    if (paragraph.front() == '=') {
      const auto command = first_word(paragraph.substr(1));
      const auto rest = detail::one_line(paragraph.substr(1 + command.size()));
      after_cut = command == "cut";
      if (command == "begin") skipping = first_word(paragraph.substr(std::min(paragraph.size(), size_t{7})));
      if (command == "end") skipping = {};
      const bool heading = command.starts_with("head");
      if (skipping.empty() && (heading || (command == "item" && rest != "*"))) out.add(PodText(rest).plain());
      continue;
    }
    if (after_cut || !skipping.empty()) continue;
    if (paragraph.front() == ' ' || paragraph.front() == '\t') {
      out.add(std::string(paragraph.substr(0, paragraph.find_last_not_of(" \t\r\n") + 1)));
    } else {
      out.add(detail::one_line(PodText(paragraph).plain()));
    }
  }
  return std::move(out).text();
}

}  // namespace coppice::data
