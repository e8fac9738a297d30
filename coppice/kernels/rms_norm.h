#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// weight * x / sqrt(mean(x^2) + epsilon) over the last dimension; differentiable.
///
/// Shapes   x [..., D], weight [D]; returns x's shape.
/// Dtypes   x f32 or bf16; weight alike, or f32. Where they are alike the normalised x is rounded before the weight is
///          applied (as Llama does in transformers); an f32 weight of a bf16 x is applied first (as Gemma does).
/// Memory   saves x and one f32 a row.
/// Threads  same bits for any number of them.
/// Source   Zhang & Sennrich, arXiv:1910.07467.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace coppice::kernels
