#pragma once

#include <array>

#include "coppice/families/family.h"

namespace coppice::families::detail {

/// A family's rows but for one each of some roles, which a relative of it lacks. A role that is not there once does not
/// compile.
template <Role... kLeftOut, size_t kRows>
consteval std::array<TensorRule, kRows - sizeof...(kLeftOut)> without(const TensorRule (&rows)[kRows]) {
  std::array<TensorRule, kRows - sizeof...(kLeftOut)> out{};
  size_t count = 0;
  for (const TensorRule& row : rows) {
    if (((row.role != kLeftOut) && ...)) out.at(count++) = row;
  }
  if (count != out.size()) throw "a role that stands in several rows";
  return out;
}

}  // namespace coppice::families::detail
