#include <charconv>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/launch/launch.h"

namespace coppice::launch {
namespace {

constexpr size_t kMostHosts = 100'000;

[[noreturn]] void refuse(std::string_view list) {
  throw Error(ErrorCode::kUsage, cat("'", shown(list),
                                     "' is no list of nodes; wanted one such as 'node[01-16],other'; set "
                                     "MASTER_ADDR to the host of rank 0"));
}

/// The parts of `text` between commas that are outside brackets.
std::vector<std::string_view> parts_of(std::string_view text) {
  std::vector<std::string_view> parts;
  size_t begin = 0, depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[') ++depth;
    if (text[i] == ']' && depth-- == 0) refuse(text);
    if (text[i] == ',' && depth == 0) {
      parts.push_back(text.substr(begin, i - begin));
      begin = i + 1;
    }
  }
  if (depth != 0) refuse(text);
  parts.push_back(text.substr(begin));
  return parts;
}

uint64_t number(std::string_view digits, std::string_view list) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) refuse(list);
  return value;
}

/// "07-09" as "07", "08", "09".
std::vector<std::string> range_of(std::string_view range, std::string_view list) {
  const size_t dash = range.find('-');
  const std::string_view first = range.substr(0, dash), last = dash == range.npos ? first : range.substr(dash + 1);
  const uint64_t begin = number(first, list), end = number(last, list);
  if (end < begin || end - begin >= kMostHosts) refuse(list);
  std::vector<std::string> out;
  for (uint64_t value = begin; value <= end; ++value) {
    std::string digits = std::to_string(value);
    if (digits.size() < first.size()) digits.insert(0, first.size() - digits.size(), '0');
    out.push_back(std::move(digits));
  }
  return out;
}

/// Every name that `pattern`, which may hold several brackets, stands for, behind each of `starts`.
std::vector<std::string> expand(std::vector<std::string> starts, std::string_view pattern, std::string_view list) {
  const size_t open = pattern.find('[');
  for (std::string& start : starts) start += pattern.substr(0, open);
  if (open == pattern.npos) return starts;
  const size_t close = pattern.find(']');
  if (close == pattern.npos || close < open) refuse(list);
  std::vector<std::string> longer;
  for (const std::string& start : starts) {
    for (const std::string_view range : parts_of(pattern.substr(open + 1, close - open - 1))) {
      for (const std::string& digits : range_of(range, list)) {
        if (longer.size() == kMostHosts) refuse(list);
        longer.push_back(start + digits);
      }
    }
  }
  return expand(std::move(longer), pattern.substr(close + 1), list);
}

}  // namespace

std::vector<std::string> expand_node_list(std::string_view list) {
  std::vector<std::string> hosts;
  for (const std::string_view part : parts_of(list)) {
    if (part.empty()) refuse(list);
    for (std::string& host : expand({""}, part, list)) hosts.push_back(std::move(host));
    if (hosts.size() > kMostHosts) refuse(list);
  }
  return hosts;
}

}  // namespace coppice::launch
