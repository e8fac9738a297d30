#pragma once

#include <array>

#include "coppice/families/family.h"

namespace coppice::families::detail {

/// A family's rows without those of some roles, which a related family does not have. A role that does not occur
/// exactly once is a compile error.
template <Role... kLeftOut, size_t kRows>
consteval std::array<TensorRule, kRows - sizeof...(kLeftOut)> without(const TensorRule (&rows)[kRows]) {
  std::array<TensorRule, kRows - sizeof...(kLeftOut)> out{};
  size_t count = 0;
  for (const TensorRule& row : rows) {
    if (((row.role != kLeftOut) && ...)) out.at(count++) = row;
  }
  if (count != out.size()) throw "a role that occurs in several rows";
  return out;
}

}  // namespace coppice::families::detail
