#pragma once

// The output layer and its cross-entropy in one function, by chunks of tokens, so that the logits of all tokens never
// exist at once. T tokens, D model dimension, V vocabulary.

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// Mean cross-entropy, in nats, of target_T under softmax(x_TD w_VD'); differentiable once in x and w.
///
/// Shapes   target_T int64; -1 is ignored; returns a scalar f32 (0 if all are ignored).
/// Devices  any, the same for all; the host waits for none of them.
/// Dtypes   f32 or bf16. In bf16 the GEMM rounds logits and their gradients to bf16; softmax, loss and sums over chunks
///          are f32, f64 over tokens.
/// Memory   logits of one chunk, on the CPU 4 million numbers or, where that is more, D tokens, of which 256 to 2,048
///          but at most 2^28 numbers (256 tokens of a vocabulary above a million); elsewhere 2^27, also in f32. With
///          gradients, that of x and, if requested, of w (f32 sums if there are several chunks), computed in the
///          forward pass.
/// Throws   for a target outside [-1, V): Error{kFormat} on the CPU; elsewhere c10::Error from the operator that looks
///          it up (on a GPU when the host next waits), so check targets before they are uploaded.
at::Tensor head_loss(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T);

/// Each token's cross-entropy, f32 [T], 0 where the target is -1; without gradient.
at::Tensor head_token_losses(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T);

}  // namespace coppice::kernels
