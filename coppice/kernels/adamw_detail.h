#pragma once

#include "coppice/kernels/adamw.h"

namespace coppice::kernels::detail {

/// adamw_step by libtorch's fused AdamW, on any device that has one. Arguments are checked.
///
/// Memory   the gradient once in f32.
void adamw_step_libtorch(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                         const at::Tensor& grad, const at::Tensor& value, int64_t step, double grad_scale,
                         const AdamwSettings& settings);

}  // namespace coppice::kernels::detail
