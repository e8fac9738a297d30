#pragma once

// The interface between the MoE layer and its variants, of which moe.cpp picks one. T tokens, D model dimension, E
// experts, K choices per token, F expert width, G = 2F, P rows of token-expert pairs (padding included).

#include <ATen/core/Tensor.h>

#include <vector>

#include "coppice/kernels/moe.h"

namespace coppice::kernels {
namespace detail {

struct MoeInputs {
  at::Tensor x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK;  ///< contiguous
  ExpertForm form = {};                                           ///< its biases contiguous too
  bool with_pair_sq = false;
};
struct MoeForward {
  at::Tensor y_TD;
  at::Tensor hidden_PG;                ///< pre-activations, in an order that depends on the variant
  at::Tensor pair_sq_TK = {};          ///< squared norms of the pairs' outputs; only if requested
  std::vector<at::Tensor> order = {};  ///< the order of the pairs, as the variant's backward pass wants it
};
struct MoeGradients {
  at::Tensor x_TD, w_gate_up_EGD, w_down_EDF, gate_TK;
  at::Tensor gate_up_bias_EG = {}, down_bias_ED = {};  ///< undefined if there are no biases
};

/// A forward pass, and the backward pass that understands its hidden_PG and `order`, all that `kept` has then.
struct MoeVariant {
  MoeForward (*forward)(const MoeInputs& in);
  MoeGradients (*backward)(const MoeInputs& in, const MoeForward& kept, const at::Tensor& grad_TD);
};

}  // namespace detail

namespace cpu {
/// AVX-512 words or libtorch's GEMMs on sorted rows, see processor_detail.h.
extern const detail::MoeVariant kExperts;
}  // namespace cpu

namespace cuda {
/// Null in a build without CUDA, and for other dtypes than f32 and bf16.
const detail::MoeVariant* experts_for(const detail::MoeInputs& in);
}  // namespace cuda

namespace aten {
/// Sorted by expert, with a loop over experts, for whose sizes the host waits for the device once, in the forward pass.
/// Any floating-point dtype.
extern const detail::MoeVariant kExperts;

/// The formula in differentiable operations, expert by expert; checks the others.
at::Tensor reference_experts(const detail::MoeInputs& in, at::Tensor* pair_sq_TK);
}  // namespace aten

}  // namespace coppice::kernels
