#pragma once

#include <algorithm>

#include "coppice/base/json.h"

namespace coppice::verify::detail {

/// Whether both values are equal: numbers in any spelling, members in any order.
inline bool same_value(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) return a == b || a.as_double() == b.as_double();
  if (a.is_array() && b.is_array()) return std::ranges::equal(a.items(), b.items(), same_value);
  if (!a.is_object() || !b.is_object()) return a == b;
  const auto holds_all = [](const Json& some, const Json& other) {
    return std::ranges::all_of(some.members(), [&](const Json::Member& member) {
      const Json* found = other.find(member.first);
      return found != nullptr && same_value(member.second, *found);
    });
  };
  return holds_all(a, b) && holds_all(b, a);
}

}  // namespace coppice::verify::detail
