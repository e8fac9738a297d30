#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// weight * x / sqrt(mean(x^2) + epsilon) over the last dimension; differentiable.
///
/// Shapes   x [..., D], weight [D]; returns x's shape.
/// Dtypes   f32 or bf16, alike. The normalised x is rounded to its dtype before the weight is applied, as transformers
///          does.
/// Memory   saves x and one f32 a row.
/// Threads  same bits for any number of them.
/// Source   Zhang & Sennrich, arXiv:1910.07467.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace coppice::kernels
