#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/io/dtype.h"
#include "coppice/methods/children.h"

namespace coppice::methods {

/// The rows of the expanded router in fp32. The caller has filled each child's row with its parent's row, so the rows
/// of originals are final.
struct RouterView {
  int64_t rows = 0, cols = 0;  ///< [N, d]; biases have cols = 1
  std::span<float> values;
  std::span<const float> source;  ///< [E, d]: the router before

  int64_t experts_before() const { return static_cast<int64_t>(source.size()) / cols; }
  std::span<float> row(size_t child) const {
    return values.subspan(child * static_cast<size_t>(cols), static_cast<size_t>(cols));
  }
  std::span<const float> source_row(size_t expert) const {
    return source.subspan(expert * static_cast<size_t>(cols), static_cast<size_t>(cols));
  }
};

enum class RouterTensor { kWeight, kBias, kSelectionBias };

struct RouterInit {
  std::string_view name;
  /// Changes the rows of children (copy > 0). `tensor` says which one `grown` is; a method may leave some unchanged.
  void (*apply)(RouterView grown, RouterTensor tensor, const LayerPlan& layer, uint64_t seed, const Params& params,
                bool has_router_bias);
  std::span<const ParamSpec> params;
  bool needs_bias;
  bool same_rows;              ///< children's weight rows equal their parents'
  bool draws = true;           ///< uses random numbers: depends on seed and copy number
  bool needs_partner = false;  ///< reads another expert's row: cannot be used for models with one expert
  std::string_view summary, source;

  bool only_copies() const { return same_rows && !needs_bias; }
};
std::span<const RouterInit> router_inits();
const RouterInit& router_init(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::methods
