// Apart from html.cpp, so that a program that prints tables and makes no pages is not linked with plotly.js.

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/report/html.h"
#include "coppice/report/table_detail.h"

namespace coppice::report {
namespace {

bool looks_like_number(std::string_view cell) {
  if (cell.empty()) return false;
  const std::string text(cell.substr(cell[0] == '+' ? 1 : 0));
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  const std::string_view rest = end;
  return end != text.c_str() && (rest.empty() || rest == "%" || rest.starts_with(" "));
}

size_t display_width(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::vector<bool> detail::number_columns(const Table& table) {
  std::vector<bool> numeric(table.header.size(), !table.rows.empty());
  for (const auto& row : table.rows) {
    for (size_t i = 0; i < row.size() && i < numeric.size(); ++i) {
      if (!row[i].empty() && row[i] != "-" && !looks_like_number(row[i])) numeric[i] = false;
    }
  }
  return numeric;
}

std::string text_table(const Table& given) {
  Table table = given;
  for (std::string& name : table.header) name = shown(name);
  for (auto& row : table.rows) {
    for (std::string& cell : row) cell = shown(cell);
  }
  const auto numeric = detail::number_columns(table);
  std::vector<size_t> width(table.header.size());
  const auto widen = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size() && i < width.size(); ++i) width[i] = std::max(width[i], display_width(row[i]));
  };
  widen(table.header);
  for (const auto& row : table.rows) widen(row);
  std::string out;
  const auto add = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size() && i < width.size(); ++i) {
      const std::string padding(width[i] - display_width(row[i]), ' ');
      line += numeric[i] ? cat(padding, row[i]) : cat(row[i], padding);
      if (i + 1 < width.size()) line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += cat(line, "\n");
  };
  add(table.header);
  std::vector<std::string> rule;
  for (const size_t w : width) rule.emplace_back(w, '-');
  add(rule);
  for (const auto& row : table.rows) add(row);
  return out;
}

}  // namespace coppice::report
