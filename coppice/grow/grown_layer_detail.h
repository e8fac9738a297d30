#pragma once

// The routers and experts of a layer as an expansion computes them.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// Rows of a router, or one of its biases, before and after an expansion. Choices other than experts are left out.
struct GrownRows {
  std::vector<float> before, after;  ///< [E, cols], [N, cols]; empty where the dtype is not a floating-point type
  int64_t cols = 1;
  io::Dtype dtype = io::Dtype::kF32;  ///< as stored
  std::vector<bool> as_parent;        ///< [N]: the child's row is bit-equal to its parent's times the plan's factor

  std::span<const float> row_before(size_t expert) const { return row(before, expert); }

 private:
  std::span<const float> row(const std::vector<float>& all, size_t i) const {
    return std::span(all).subspan(i * static_cast<size_t>(cols), static_cast<size_t>(cols));
  }
};

/// The tensors of an expansion that decide whether it keeps the function.
///
/// Memory   a slot for each router; rows are read layer by layer.
class GrownLayers {
 public:
  /// Both arguments must outlive this object.
  GrownLayers(const families::Model& model, const plan::GrowthPlan& plan);
  GrownLayers(const GrownLayers&) = delete;
  GrownLayers& operator=(const GrownLayers&) = delete;

  /// Empty if the layer has no tensor of the role (kRouter, kRouterBias, kSelectionBias).
  std::optional<GrownRows> rows(families::Role role, int64_t layer) const;
  /// Whether every new expert of the layer is byte-equal to its parent's original in the expanded model. Stops at the
  /// first that differs.
  bool experts_are_copies(int64_t layer) const;

 private:
  const families::Model& model_;
  const plan::GrowthPlan plan_;
  const std::optional<models::OptimizerState> state_;
  const std::vector<families::TensorSlot> router_slots_;
  std::vector<output::OutputTensor> routers_;
  std::map<std::pair<families::Role, int64_t>, size_t> router_at_;
};

}  // namespace coppice::grow::detail
