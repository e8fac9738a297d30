#pragma once

// The interface between the MoE layer and its implementations for devices: one .cpp for each, chosen by moe.cpp. T
// tokens, D model dimension, E experts, K choices per token, F expert width, G = 2F, P rows of token-expert pairs
// (padding included).

#include <ATen/core/Tensor.h>

#include "coppice/kernels/moe.h"

namespace coppice::kernels::detail {

struct MoeInputs {
  at::Tensor x_TD, w_gate_up_EGD, w_down_EDF, index_TK, gate_TK;  ///< contiguous
  ExpertForm form = {};                                           ///< its biases contiguous too
  bool with_pair_sq = false;
};
struct MoeForward {
  at::Tensor y_TD;
  at::Tensor hidden_PG;        ///< pre-activations, in an order that depends on the variant
  at::Tensor pair_sq_TK = {};  ///< squared norms of the pairs' outputs; only if requested
};
struct MoeGradients {
  at::Tensor x_TD, w_gate_up_EGD, w_down_EDF, gate_TK;
  at::Tensor gate_up_bias_EG = {}, down_bias_ED = {};  ///< undefined if there are no biases
};

/// Whether this processor can run the AVX-512 variant on such tensors: D and F multiples of 32, plain SwiGLU experts.
bool has_avx512_experts(const MoeInputs& inputs);
MoeForward moe_forward_avx512(const MoeInputs& inputs);
MoeGradients moe_backward_avx512(const MoeInputs& inputs, const at::Tensor& hidden_PG, const at::Tensor& grad_TD);

/// On a GPU. Throws Error{kUnsupported} in a build without CUDA.
MoeForward moe_forward_cuda(const MoeInputs& inputs);
MoeGradients moe_backward_cuda(const MoeInputs& inputs, const at::Tensor& hidden_PG, const at::Tensor& grad_TD);

/// The AVX-512 variant if it can run, else library GEMMs.
MoeForward moe_forward_cpu(const MoeInputs& inputs);
MoeGradients moe_backward_cpu(const MoeInputs& inputs, const at::Tensor& hidden_PG, const at::Tensor& grad_TD);

}  // namespace coppice::kernels::detail
