#include "coppice/io/expert_mentions.h"

#include <algorithm>
#include <array>

namespace coppice::io {
namespace {

constexpr std::string_view kWord = "expert";
constexpr std::array<std::string_view, 9> kCounts = {"num",   "n",      "nb",     "number", "moe",
                                                     "total", "routed", "shared", "local"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_in_name(char c) { return is_letter(c) || is_digit(c) || c == '_' || c == '-'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// Whether `before` ends with a word for a count: "num_", "moe-num-", "n_routed_".
bool counts(std::string_view before) {
  if (before.empty() || (before.back() != '_' && before.back() != '-')) return false;
  const auto* const end = std::ranges::find_if_not(before, is_letter);
  return std::ranges::find(kCounts, std::string_view(before.begin(), end)) != kCounts.end();
}

/// Whether `after`, the text after the word, continues with ": 8", ": \"8\"", or a list or map of numbers; with
/// `only_lists` only a list or map.
bool has_numbers(std::string_view after, bool only_lists) {
  const auto skip = [&](auto&& is_skipped) {
    while (!after.empty() && is_skipped(after.front())) after.remove_prefix(1);
  };
  const auto is_quote = [](char c) { return c == '"' || c == '\''; };
  skip(is_in_name);
  skip(is_quote);
  skip(is_space);
  if (after.empty() || after.front() != ':') return false;
  after.remove_prefix(1);
  skip(is_space);
  bool is_list = false;
  if (!after.empty() && (after.front() == '[' || after.front() == '{' || after.starts_with("- "))) {
    is_list = true;
    after.remove_prefix(1);
    skip(is_space);
  }
  skip(is_quote);
  return (is_list || !only_lists) && !after.empty() && is_digit(after.front());
}

/// Whether the character may separate the word from a number, in names and in patterns of names.
bool is_between(char c) {
  constexpr std::string_view kBetween = "._-[]()/?*^$|";
  return kBetween.find(c) != std::string_view::npos;
}

/// The position of the number in `text`, searched from `at`, after the word.
std::optional<size_t> number_behind(std::string_view text, size_t at) {
  const size_t begin = at;
  bool is_plain_dash = true;  // "4-experts-2" is not a module
  while (at < text.size()) {
    const std::string_view rest = text.substr(at);
    size_t class_length = 0;  // length of a class of all digits
    if (rest.starts_with("[0-9]")) class_length = 5;
    if (rest.front() == '\\') {
      const size_t letter = std::min(rest.find_first_not_of('\\'), rest.size());
      if (letter == rest.size()) return std::nullopt;
      if (rest[letter] == 'd') {
        class_length = letter + 1;
      } else {
        at += letter;
        is_plain_dash = false;
        continue;
      }
    }
    if (class_length > 0) {
      const bool any_number = class_length < rest.size() && (rest[class_length] == '+' || rest[class_length] == '*');
      return any_number ? std::nullopt : std::optional(at);
    }
    if (is_digit(rest.front())) {
      const size_t end = std::min(text.find_first_not_of("0123456789", at), text.size());
      const bool is_number = end == text.size() || !is_letter(text[end]);
      return is_number && !(is_plain_dash && at > begin) ? std::optional(at) : std::nullopt;
    }
    if (rest.starts_with("?:")) {
      at += 2;
    } else if (rest.starts_with("expert_")) {
      at += 7;
    } else if (is_between(rest.front())) {
      ++at;
    } else {
      return std::nullopt;
    }
    is_plain_dash = is_plain_dash && rest.front() == '-';
  }
  return std::nullopt;
}

bool is_shared(std::string_view before) { return before.ends_with("shared_") || before.ends_with("shared-"); }

}  // namespace

std::optional<size_t> numbered_expert(std::string_view text) {
  for (size_t at = 0; (at = text.find(kWord, at)) != std::string_view::npos; at += kWord.size()) {
    if (is_shared(text.substr(0, at))) continue;
    size_t behind = at + kWord.size();
    if (behind < text.size() && text[behind] == 's') ++behind;
    if (const auto found = number_behind(text, behind)) return found;
  }
  return std::nullopt;
}

std::optional<size_t> number_in_word(std::string_view word) {
  const size_t at = word.find_last_not_of("0123456789") + 1;
  if (at == word.size()) return std::nullopt;
  std::string_view stem = word.substr(0, at);
  if (stem.ends_with('_')) stem.remove_suffix(1);
  if (stem.ends_with('s')) stem.remove_suffix(1);
  if (!stem.ends_with(kWord)) return std::nullopt;
  stem.remove_suffix(kWord.size());
  const bool is_word = stem.empty() || stem.ends_with('_');
  return is_word && stem.find("share") == std::string_view::npos ? std::optional(at) : std::nullopt;
}

bool mentions_experts(std::string_view text) {
  if (numbered_expert(text)) return true;
  for (size_t at = 0; (at = text.find(kWord, at)) != std::string_view::npos; at += kWord.size()) {
    size_t begin = at;
    while (begin > 0 && is_in_name(text[begin - 1])) --begin;
    if (has_numbers(text.substr(at + kWord.size()), !counts(text.substr(begin, at - begin)))) return true;
  }
  return false;
}

}  // namespace coppice::io
