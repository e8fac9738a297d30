#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

namespace coppice::score {

/// The sum of a * b in fp64, over 16 lanes in a fixed order.
double dot(std::span<const float> a, std::span<const float> b);

/// `dot` over each expert's elements.
///
/// Shapes   a, b [experts, ...] f32, contiguous, of the same shape; returns [experts].
/// Threads  at::get_num_threads(); the bits do not depend on their number.
std::vector<double> expert_dot(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::score
