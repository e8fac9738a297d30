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
/// Memory   on the CPU with AVX-512, S and C multiples of 32 (in bf16 with AMX only C of 32), and for C of 16 or 32 up
///          to S of 512 on any: saves its arguments, its result and one f32 per query. Otherwise as libtorch's
///          scaled_dot_product_attention, and one bool per pair of positions if start_BS is given.
/// Threads  the bits do not depend on the number of threads.
/// Source   Dao et al., FlashAttention, arXiv:2205.14135 (the backward pass from the sums).
at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const at::Tensor& start_BS = {});

/// Causal self-attention in which a query sees `window` positions including its own (0: all before it), and each head
/// has a sink: an additional score that takes a share of the softmax but adds no value. Differentiable.
///
/// Shapes   query_BSHC; key_BSJC and value_BSJC, H a multiple of J (grouped queries); sink_H or undefined; start_BS as
///          in causal_attention; returns [B, S, H, C].
/// Dtypes   f32 or bf16, alike.
/// Memory   a mask [S, S] in the dtype ([B, S, S] with start_BS), and the memory of libtorch's
///          scaled_dot_product_attention; with sinks also copies of queries, keys and values.
/// Source   Beltagy et al., arXiv:2004.05150 (window); Xiao et al., arXiv:2309.17453 (sinks).
at::Tensor local_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                           double scale, int64_t window, const at::Tensor& sink_H, const at::Tensor& start_BS = {});

}  // namespace coppice::kernels
