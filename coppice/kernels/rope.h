#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// Rotary position embedding of the leading dimensions of each head, in the half-split layout; differentiable in x.
///
/// Shapes   x_BSHD (D = head dimension); cos_SR, sin_SR: [S, R], the first 2R <= D dimensions are rotated, the rest is
///          unchanged; or [B * S, R], a row of angles per token.
/// Dtypes   x f32 or bf16; cos and sin f32; computed in f32 and rounded once.
/// Memory   saves the angles; off the CPU some temporaries of the size of x in f32.
/// Source   Su et al., arXiv:2104.09864; rotate_half of transformers.
at::Tensor rope(const at::Tensor& x_BSHD, const at::Tensor& cos_SR, const at::Tensor& sin_SR);

}  // namespace coppice::kernels
