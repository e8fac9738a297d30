#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace coppice::kernels {

struct AdamwSettings {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
};

/// Some elements of a parameter, with what AdamW keeps of them.
///
/// Shapes   all the same, contiguous.
/// Dtypes   master f32; moments f32, or bf16 with stochastic rounding keyed by (element, step); grad f32 or bf16; value
///          bf16 (rounded to nearest even from the new master) or f32.
struct AdamwPart {
  at::Tensor master, exp_avg, exp_avg_sq, grad;
  at::Tensor value;           ///< undefined if master itself is used in the computation
  int64_t step = 1;           ///< counts from 1 for the first update of these elements
  bool decays = true;         ///< false: as if the weight decay were 0
  int64_t first_element = 0;  ///< the number of element 0 in its parameter, so that a cut changes no rounding
};

/// One AdamW step (decoupled decay) of all parts, which share no element: on the CPU in one pass over memory and one
/// parallel region, elsewhere by libtorch in as few kernels as it has for lists.
///
/// Units    `grad_scale` multiplies the gradients first (clipping, accumulation).
/// Threads  at::get_num_threads(); same bits for any number of them, and for any cut of a parameter into parts.
/// Source   Loshchilov & Hutter, arXiv:1711.05101; torch.optim.AdamW gives the same numbers to rounding.
void adamw_step(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& settings);

}  // namespace coppice::kernels
