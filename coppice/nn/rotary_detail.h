#pragma once

// S positions, R half of the rotary dimensions.

#include <ATen/core/Tensor.h>

#include <utility>

#include "coppice/families/rope.h"

namespace coppice::nn::detail {

/// Cosine and sine of every angle, times RoPE's attention factor, as transformers computes them.
///
/// Shapes   returns two [S, R], f32.
/// Source   modeling_rope_utils.py of transformers 5.17.0; Su et al., arXiv:2104.09864.
std::pair<at::Tensor, at::Tensor> rotary_angles(const families::Rope& rope, int64_t positions);

}  // namespace coppice::nn::detail
