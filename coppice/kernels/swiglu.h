#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// silu(gate) * up, the activation of dense and shared feed-forwards; differentiable.
///
/// Shapes   the same for all.
/// Dtypes   f32 or bf16, the same for all; computed in f32 and rounded once.
/// Memory   saves its inputs only; off the CPU some temporaries of their size in f32.
/// Source   Shazeer, arXiv:2002.05202.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace coppice::kernels
