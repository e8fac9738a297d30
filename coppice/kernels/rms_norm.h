#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// weight * x / sqrt(mean(x^2) + epsilon) over the last dimension; differentiable.
///
/// Shapes   x [..., D], weight [D]; returns x's shape.
/// Dtypes   x f32 or bf16; weight the same dtype, or f32. With the same dtype the normalised x is rounded before the
///          weight is applied (as Llama does in transformers); with a bf16 x and an f32 weight, the weight is applied
///          before rounding (as Gemma does).
/// Memory   saves x and one f32 per row; off the CPU some temporaries of the size of x in f32.
/// Threads  the bits do not depend on the number of threads.
/// Source   Zhang & Sennrich, arXiv:1910.07467.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace coppice::kernels
