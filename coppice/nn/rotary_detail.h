#pragma once

// S positions, R half of the rotary dimensions.

#include <ATen/core/Tensor.h>

#include <mutex>
#include <utility>

#include "coppice/families/rope.h"

namespace coppice::nn::detail {

/// Cosine and sine of every angle, times RoPE's attention factor, as transformers computes them.
///
/// Shapes   returns two [S, R], f32.
/// Source   modeling_rope_utils.py of transformers 5.17.0; Su et al., arXiv:2104.09864.
std::pair<at::Tensor, at::Tensor> rotary_angles(const families::Rope& rope, int64_t positions);

/// The angles of a model on its device. They are computed on the host and stay until another number of positions is
/// asked for.
///
/// Threads  any.
class AngleCache {
 public:
  AngleCache(families::Rope rope, at::Device device) : rope_(std::move(rope)), device_(device) {}

  /// Cosines and sines, [S, R] f32.
  std::pair<at::Tensor, at::Tensor> of(int64_t positions);

 private:
  families::Rope rope_;
  at::Device device_;
  std::mutex mutex_;
  int64_t positions_ = -1;
  std::pair<at::Tensor, at::Tensor> angles_SR_;
};

}  // namespace coppice::nn::detail
