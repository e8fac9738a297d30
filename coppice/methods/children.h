#pragma once

// Whose child every expert of a layer is: what methods see of a plan.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "coppice/methods/params.h"

namespace coppice::methods {

/// One expert of the grown model. copy 0 is the original, kept bit for bit; copies of a parent count 1, 2, ...
struct Child {
  uint32_t parent = 0;
  uint32_t copy = 0;
  bool operator==(const Child&) const = default;
};

struct LayerPlan {
  int64_t layer = 0;
  std::vector<Child> children;                           ///< [N], in the order of the grown model
  std::optional<MethodChoice> expert_init, router_init;  ///< of this layer; else the plan's
  /// Number of children of each of the E parents, the original included.
  std::vector<uint32_t> siblings(int64_t experts_before) const;
  bool operator==(const LayerPlan&) const = default;
};

/// A layer number as a key: decimal digits, no leading zero, < 65,536. Throws Error{kFormat} starting with `path`.
int64_t layer_from_key(std::string_view key, std::string_view path);

}  // namespace coppice::methods
