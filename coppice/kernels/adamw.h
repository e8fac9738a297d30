#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice::kernels {

struct AdamwSettings {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
};

/// One AdamW step (decoupled decay): on the CPU in one pass over memory, elsewhere by libtorch.
///
/// Shapes   master, exp_avg, exp_avg_sq, grad: the same shape, contiguous; value likewise, or undefined if master
///          itself is used in the computation.
/// Dtypes   master f32; moments f32, or bf16 with stochastic rounding keyed by (element, step); grad f32 or bf16; value
///          bf16 (rounded to nearest even from the new master) or f32.
/// Units    `step` counts from 1 for the first update; `grad_scale` multiplies the gradient first (clipping,
///          accumulation).
/// Source   Loshchilov & Hutter, arXiv:1711.05101; torch.optim.AdamW gives the same numbers to rounding.
void adamw_step(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                const at::Tensor& grad, const at::Tensor& value, int64_t step, double grad_scale,
                const AdamwSettings& settings);

}  // namespace coppice::kernels
