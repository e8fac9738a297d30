#pragma once

// The interface between the MoE layer and its implementations for devices: one .cpp for each, chosen by moe.cpp. T
// tokens, D model dimension, E experts, K choices per token, F expert width, G = 2F, P rows of token-expert pairs
// (padding included).

#include <ATen/core/Tensor.h>

#include <functional>

#include "coppice/kernels/moe.h"
#include "coppice/kernels/pair_order_detail.h"

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

/// The order of a layer's pairs, with the tensors that hold it.
struct KeptOrder {
  at::Tensor first_row, pair_of_row, row_of_pair;  ///< int32, where the indices are
  PairOrder order;
};
/// Room for an order of so many rows; `index` and the sizes are filled in.
KeptOrder room_for_order(const MoeInputs& inputs, int64_t rows);
/// The order on the CPU by a counting sort: integers only, so the same for any number of threads.
///
/// `filled_up` says how many rows an expert of so many pairs gets; the last ones are padding.
/// Throws   Error{kInternal} for an index that is no expert.
KeptOrder order_pairs(const MoeInputs& inputs, const std::function<int64_t(int64_t rows)>& filled_up);

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
