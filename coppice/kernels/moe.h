#pragma once

// The expert feed-forward of one MoE layer, without the router.
// T tokens, D model dimension, E experts, K choices per token, F expert width.

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

enum class MoeKernel {
  kReference,  ///< a plain loop over experts in autograd operations; slow, used to check the other
  kFast,       ///< pairs sorted by expert, grouped GEMMs, own backward as one autograd function
};

enum class ExpertActivation {
  kSwiglu,         ///< silu(g) * u
  kClampedSwiglu,  ///< g' sigmoid(1.702 g') (u' + 1), g' = min(g, 7), u' = u held to [-7, 7] (gpt_oss)
};

/// Variations of experts: biases and other activations.
struct ExpertForm {
  ExpertActivation activation = ExpertActivation::kSwiglu;
  at::Tensor gate_up_bias_EG = {}, down_bias_ED = {};  ///< dtype of the weights; undefined: none

  bool is_plain() const {
    return activation == ExpertActivation::kSwiglu && !gate_up_bias_EG.defined() && !down_bias_ED.defined();
  }
};

/// y_t = sum over k of gate_tk * down_e(silu(gate_e x_t) * (up_e x_t)), e = index_tk; with the variations of `form`.
///
/// Shapes   x_TD; w_gate_up_EGD [E, 2F, D] (gate rows first); w_down_EDF; index_TK; gate_TK; returns y_TD.
/// Dtypes   x and weights alike, f32 or bf16; index int64; gates f32; y like x. Sums over K and F in f32.
/// Devices  any, the same for all. On a GPU, in a build with CUDA, all runs on kernels of our own, and the host does
///          not wait where libtorch has a grouped GEMM (bf16, Hopper and Blackwell). Otherwise off the CPU the host
///          waits once, in the forward pass.
/// Memory   kFast saves x, the pre-activations [T*K, 2F], the routing and the order of the pairs (int32, three
///          per pair at most); neither expert outputs nor a gathered copy of x.
/// Threads  at::get_num_threads(); the bits do not depend on their number. On a GPU: the current stream, no atomics.
/// Throws   for an index that is no expert: Error{kInternal} on the CPU; elsewhere c10::Error from libtorch's operator
///          where it runs by those.
///
/// Sets `pair_sq_TK`, if given, to the squared norm of each pair's down_e(...), f32, without gradient.
at::Tensor moe_experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_EGD, const at::Tensor& w_down_EDF,
                       const at::Tensor& index_TK, const at::Tensor& gate_TK, MoeKernel kernel,
                       const ExpertForm& form = {}, at::Tensor* pair_sq_TK = nullptr);

}  // namespace coppice::kernels
