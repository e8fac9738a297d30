#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// Causal self-attention, softmax(scale q k') v, of each document in a sequence on its own; differentiable once.
///
/// Shapes   query_BSHC; key_BSJC and value_BSJC, H a multiple of J (grouped queries); returns [B, S, H, C]. start_BS:
///          where in its sequence the document of each position starts, rising; undefined: a sequence is one document.
/// Dtypes   f32 or bf16, alike; start_BS int64. Scores and sums in f32; in bf16 probabilities and their gradients are rounded once.
/// Memory   with AVX-512, S and C multiples of 32: saves its arguments, its result and one f32 a query. Else what
///          libtorch's scaled_dot_product_attention saves, and one bool for each pair of positions if start_BS is given.
/// Threads  same bits for any number of them.
/// Source   Dao et al., FlashAttention, arXiv:2205.14135 (the backward pass from the sums).
at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const at::Tensor& start_BS = {});

}  // namespace coppice::kernels
