#pragma once

#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::cpu {

/// A forward pass of causal attention, and its backward pass.
struct AttentionVariant {
  detail::AttentionForward (*forward)(const detail::AttentionInputs& in);
  detail::AttentionGradients (*backward)(const detail::AttentionInputs& in, const detail::AttentionForward& forward,
                                         const at::Tensor& grad_BSHC);
};
extern const AttentionVariant kAttentionByWords, kAttentionByTiles, kAttentionByLanes;

}  // namespace coppice::kernels::cpu
