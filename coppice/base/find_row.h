#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice {

/// Returns the row of a table that has this name.
///
/// Throws   Error{kUsage}, with the nearest name, if there is none.
template <class Row>
const Row& find_row(std::span<const Row> rows, std::string_view what, std::string_view name) {
  for (const Row& row : rows) {
    if (row.name == name) return row;
  }
  std::vector<std::string> names;
  for (const Row& row : rows) names.emplace_back(row.name);
  throw Error(ErrorCode::kUsage, cat(what, ": there is no '", name, "'", suggestion(name, names)));
}

}  // namespace coppice
