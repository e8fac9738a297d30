#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "coppice/families/match.h"

namespace coppice::nn {

/// A trainable tensor in memory: one tensor on disk, or the matrices of all experts of a layer.
///
/// The experts of an MoE layer are two parameters, whatever their layout on disk: role kExpertGate [E, 2F, D] (per
/// expert gate rows, then up rows) and role kExpertDown [E, D, F]; their biases two more, kExpertGateBias [E, 2F] and
/// kExpertDownBias [E, D]. A rank of an expert group has its own experts only: E is then their number.
struct Parameter {
  /// A tensor on disk as a part of the parameter.
  struct Slice {
    families::TensorSlot slot;            ///< the tensor on disk: name, role, expert, shape (of all experts)
    int64_t begin = 0;                    ///< element
    std::vector<int64_t> sizes, strides;  ///< the view of the parameter whose elements, in order, are the tensor's
                                          ///< (in a stack, those of the parameter's experts)

    int64_t count() const;
    /// The view of a contiguous tensor of the parameter's shape: value, master, gradient, moment.
    at::Tensor of(const at::Tensor& tensor) const;
  };
  /// The place of one matrix of an expert, [out, in] and contiguous; a bias has one column.
  struct ExpertMatrix {
    families::Role role;  ///< kExpertGate, kExpertUp, kExpertDown or their biases
    int64_t expert = 0;   ///< its number in the layer, counted over all ranks
    int64_t begin = 0, rows = 0, cols = 0;
  };

  families::Role role;
  int64_t layer = -1;
  at::Tensor value;   ///< the value used in the computation: f32 or bf16, a leaf that requires grad
  at::Tensor master;  ///< f32; shares the storage of value if that is f32
  std::vector<Slice> slices;
  std::vector<int64_t> experts;  ///< the numbers of its experts, rising; empty if the parameter has none

  bool is_experts() const { return families::is_expert(role); }
  std::vector<ExpertMatrix> expert_matrices() const;  ///< expert by expert; empty if the parameter has no experts
  /// Weight decay applies to matrices, not to norms and biases.
  bool decays() const;
};

}  // namespace coppice::nn
