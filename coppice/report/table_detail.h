#pragma once

#include <vector>

#include "coppice/report/html.h"

namespace coppice::report::detail {

/// For each column whether all its cells are numbers.
std::vector<bool> number_columns(const Table& table);

}  // namespace coppice::report::detail
