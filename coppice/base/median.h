#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace coppice {

/// The median; of an even number of values, the upper of the middle two; `of_none` if there are no values.
inline double median(std::vector<double> values, double of_none = 0) {
  if (values.empty()) return of_none;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

}  // namespace coppice
