#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::nn {

/// A trainable tensor in memory: one tensor on disk, or all experts of a layer side by side.
///
/// Experts are two parameters a MoE layer: role kExpertGate [E, 2F, D] (per expert gate rows, then up rows) and role
/// kExpertDown [E, D, F]. So every tensor on disk is one contiguous range of elements.
struct Parameter {
  struct Slice {
    families::TensorSlot slot;     ///< the tensor on disk: name, role, expert, shape
    int64_t begin = 0, count = 0;  ///< elements
  };
  families::Role role;
  int64_t layer = -1;
  at::Tensor value;   ///< what is computed with: f32 or bf16, a leaf that requires grad
  at::Tensor master;  ///< f32; the same storage as value where that is f32
  std::vector<Slice> slices;

  bool is_experts() const { return families::is_expert(role); }
  /// Weight decay applies to matrices, not to norms and biases.
  bool decays() const;
};

}  // namespace coppice::nn
