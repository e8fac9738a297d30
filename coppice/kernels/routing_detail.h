#pragma once

// The variants of what routing.h and lineage_choice.h have. Tensors are contiguous.

#include "coppice/kernels/lineage_choice.h"
#include "coppice/kernels/routing.h"

namespace coppice::kernels {

namespace detail {
inline constexpr float kTie =
    1e-5f;  // relative to a logit, because some products of equal rows differ in the last bits
inline constexpr int kHashShift = 11;  // leaves the 53 bits of a double

struct GatesForward {
  at::Tensor gate_TK;
  at::Tensor share_TK;  ///< the numbers of the chosen experts, after the softmax if there is one
};
}  // namespace detail

namespace cpu {
at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice);
detail::GatesForward gates_forward(const at::Tensor& value_TE, const at::Tensor& index_TK, const GateForm& form);
/// The gradient of value_TE.
at::Tensor gates_backward(const detail::GatesForward& forward, const at::Tensor& index_TK, const at::Tensor& grad_TK,
                          int64_t num_experts, const GateForm& form);
at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts);
at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor);
at::Tensor tokens_held(const at::Tensor& scores_TE, uint64_t first_token, uint64_t seed, double share);
LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token);
}  // namespace cpu

namespace aten {
at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice);
/// Differentiable by libtorch's own gradients.
at::Tensor gates(const at::Tensor& value_TE, const at::Tensor& index_TK, const GateForm& form);
at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts);
at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor);
at::Tensor tokens_held(const at::Tensor& scores_TE, uint64_t first_token, uint64_t seed, double share);
LineageChoice best_children(const at::Tensor& choice_TE, const at::Tensor& logits_TE, const at::Tensor& bias_E,
                            const at::Tensor& child_LR, uint64_t seed, uint64_t first_token);
}  // namespace aten

}  // namespace coppice::kernels
