#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

namespace coppice::score {

/// Sum of a * b in fp64, over 16 lanes in a fixed order.
double dot(std::span<const float> a, std::span<const float> b);

/// `dot` over each expert's elements.
///
/// Shapes   a, b [experts, ...] f32, contiguous and alike; returns [experts].
/// Threads  at::get_num_threads(); same bits for any number of them.
std::vector<double> expert_dot(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::score
