#pragma once

// The interface between attention and its variants, of which attention.cpp picks one.

#include <ATen/core/Tensor.h>

#include "coppice/kernels/attention.h"

namespace coppice::kernels {
namespace detail {

struct AttentionInputs {
  at::Tensor query_BSHC, key_BSJC, value_BSJC;  ///< contiguous
  double scale = 1;
  Sight sight = {};
};
struct AttentionForward {
  at::Tensor out_BSHC;
  /// f32 (f64 if the inputs are): log of the sum of a query's exponentials, that of the sink included. [B, H, S], but
  /// [H, B * S] of libtorch's FlashAttention.
  at::Tensor log_sum;
};
struct AttentionGradients {
  at::Tensor query_BSHC, key_BSJC, value_BSJC;
  at::Tensor sink_H = {};  ///< undefined if there are no sinks
};

/// A forward pass, and the backward pass that understands its log_sum.
struct AttentionVariant {
  AttentionForward (*forward)(const AttentionInputs& in);
  AttentionGradients (*backward)(const AttentionInputs& in, const AttentionForward& forward,
                                 const at::Tensor& grad_BSHC);
};

}  // namespace detail

namespace cpu {
/// The CPU's own variants, without windows and sinks; null if none is the one for such tensors.
const detail::AttentionVariant* attention_for(const detail::AttentionInputs& in);
}  // namespace cpu

namespace aten {
/// Without documents, windows and sinks; differentiable by itself.
at::Tensor plain_attention(const detail::AttentionInputs& in);

/// Whether libtorch's FlashAttention takes such tensors, if it is there.
bool fits_flash(const detail::AttentionInputs& in);
extern const detail::AttentionVariant kAttentionByFlash;

/// A block of queries at a time with the keys that any of them sees. Any device, any floating-point dtype.
extern const detail::AttentionVariant kAttentionByBlocks;
}  // namespace aten

}  // namespace coppice::kernels
