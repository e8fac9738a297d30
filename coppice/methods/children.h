#pragma once

// The parent of every expert of a layer: the part of a plan that methods use.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "coppice/methods/params.h"

namespace coppice::methods {

/// One expert of the expanded model. copy 0 is the original, which stays bit-equal; the copies of a parent are numbered
/// 1, 2, ...
struct Child {
  uint32_t parent = 0;
  uint32_t copy = 0;
  bool operator==(const Child&) const = default;
};

struct LayerPlan {
  int64_t layer = 0;
  std::vector<Child> children;                           ///< [N], in the order of the expanded model
  std::optional<MethodChoice> expert_init, router_init;  ///< methods of this layer, if they differ from the plan's
  /// The number of children of each of the E parents, including the original.
  std::vector<uint32_t> siblings(int64_t experts_before) const;
  bool operator==(const LayerPlan&) const = default;
};

/// The number of a layer as coppice writes it: digits without a leading zero, below kMaxLayers. None for other text.
std::optional<int64_t> layer_number(std::string_view text);
/// A layer number as a key: decimal digits, no leading zero, < 65,536. Throws Error{kFormat} starting with `path`.
int64_t layer_from_key(std::string_view key, std::string_view path);

}  // namespace coppice::methods
