#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// Causal self-attention, softmax(scale q k') v, for each document in a sequence separately; differentiable once.
///
/// Shapes   query_BSHC; key_BSJC and value_BSJC, H a multiple of J (grouped queries); returns [B, S, H, C]. start_BS:
///          position in its sequence where the document of each position starts, rising; undefined: a sequence is one
///          document.
/// Dtypes   f32 or bf16, alike; start_BS int64. Scores and sums in f32; in bf16 probabilities and their gradients are
///          rounded once.
/// Memory   on the CPU with AVX-512, S and C multiples of 32 (in bf16 with AMX only C of 32): saves its arguments, its
///          result and one f32 per query. Otherwise as libtorch's scaled_dot_product_attention, and one bool per pair
///          of positions if start_BS is given.
/// Threads  the bits do not depend on the number of threads.
/// Source   Dao et al., FlashAttention, arXiv:2205.14135 (the backward pass from the sums).
at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const at::Tensor& start_BS = {});

}  // namespace coppice::kernels
