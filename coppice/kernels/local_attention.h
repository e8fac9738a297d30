#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

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
