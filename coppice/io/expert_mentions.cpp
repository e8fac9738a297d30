#include <algorithm>
#include <array>

#include "coppice/io/expert_mentions_detail.h"

namespace coppice::io::detail {
namespace {

constexpr std::string_view kWord = "expert";
constexpr std::array<std::string_view, 9> kCounts = {"num",   "n",      "nb",     "number", "moe",
                                                     "total", "routed", "shared", "local"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_in_name(char c) { return is_letter(c) || is_digit(c) || c == '_' || c == '-'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// `before` ends in the name of a number: "num_", "moe-num-", "n_routed_".
bool counts(std::string_view before) {
  if (before.empty() || (before.back() != '_' && before.back() != '-')) return false;
  const auto* const end = std::ranges::find_if_not(before, is_letter);
  return std::ranges::find(kCounts, std::string_view(before.begin(), end)) != kCounts.end();
}

/// `after`, which follows the word, goes on to ": 8".
bool has_number(std::string_view after) {
  const auto skip = [&](auto&& is_skipped) {
    while (!after.empty() && is_skipped(after.front())) after.remove_prefix(1);
  };
  skip(is_in_name);
  skip([](char c) { return c == '"' || c == '\''; });
  skip(is_space);
  if (after.empty() || after.front() != ':') return false;
  after.remove_prefix(1);
  skip(is_space);
  return !after.empty() && is_digit(after.front());
}

/// "s.0", "s[0", "_0".
bool is_numbered(std::string_view after) {
  if (after.starts_with('s')) after.remove_prefix(1);
  constexpr std::string_view kBefore = "._[/";
  return after.size() >= 2 && kBefore.find(after[0]) != std::string_view::npos && is_digit(after[1]);
}

}  // namespace

bool mentions_experts(std::string_view text) {
  for (size_t at = 0; (at = text.find(kWord, at)) != std::string_view::npos; at += kWord.size()) {
    const std::string_view after = text.substr(at + kWord.size());
    if (is_numbered(after)) return true;
    size_t begin = at;
    while (begin > 0 && is_in_name(text[begin - 1])) --begin;
    if (counts(text.substr(begin, at - begin)) && has_number(after)) return true;
  }
  return false;
}

}  // namespace coppice::io::detail
