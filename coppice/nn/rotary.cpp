#include <ATen/ops/arange.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "coppice/base/check.h"
#include "coppice/nn/host.h"
#include "coppice/nn/rotary_detail.h"

namespace coppice::nn::detail {
namespace {

using families::Rope;
using families::RopeScaling;

constexpr double kTurn = 2 * std::numbers::pi;

at::TensorOptions f32() { return at::TensorOptions().dtype(at::kFloat); }

/// theta^(2r / dim), one for each frequency.
at::Tensor powers(double theta, int64_t dim) {
  return at::pow(at::Scalar(theta), at::arange(0, dim, 2, f32()) / static_cast<double>(dim));
}

at::Tensor dynamic_frequencies(const Rope& rope, int64_t positions) {
  const double longer =
      static_cast<double>(std::max(positions, rope.max_positions)) / static_cast<double>(rope.max_positions);
  const auto dim = static_cast<double>(rope.dim);
  const double theta = rope.theta * std::pow(rope.factor * longer - (rope.factor - 1), dim / (dim - 2));
  return 1.0 / powers(theta, rope.dim);
}

at::Tensor yarn_frequencies(const Rope& rope) {
  // The dimension whose pair makes this number of rotations within the original length.
  const auto dimension = [&](double turns) {
    return static_cast<double>(rope.dim) * std::log(static_cast<double>(rope.original_positions) / (turns * kTurn)) /
           (2 * std::log(rope.theta));
  };
  double low = dimension(rope.beta_fast), high = dimension(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.dim - 1));
  if (low == high) high += 0.001;
  const auto power_R = powers(rope.theta, rope.dim);
  const auto kept_R = 1 - at::clamp((at::arange(0, rope.dim / 2, f32()) - low) / (high - low), 0, 1);
  return 1.0 / (rope.factor * power_R) * (1 - kept_R) + 1.0 / power_R * kept_R;
}

at::Tensor llama3_frequencies(const Rope& rope) {
  const auto positions = static_cast<double>(rope.original_positions);
  const auto frequency_R = 1.0 / powers(rope.theta, rope.dim);
  const auto wavelength_R = kTurn / frequency_R;
  const auto is_low_R = wavelength_R > positions / rope.low_freq_factor;
  const auto is_high_R = wavelength_R < positions / rope.high_freq_factor;
  const auto share_R =
      (positions / wavelength_R - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const auto between_R = (1 - share_R) * frequency_R / rope.factor + share_R * frequency_R;
  return at::where(is_low_R, frequency_R / rope.factor, at::where(is_high_R, frequency_R, between_R));
}

at::Tensor frequencies(const Rope& rope, int64_t positions) {
  switch (rope.scaling) {
    case RopeScaling::kNone: return 1.0 / powers(rope.theta, rope.dim);
    case RopeScaling::kLinear: return 1.0 / powers(rope.theta, rope.dim) / rope.factor;
    case RopeScaling::kDynamic: return dynamic_frequencies(rope, positions);
    case RopeScaling::kYarn: return yarn_frequencies(rope);
    case RopeScaling::kLlama3: return llama3_frequencies(rope);
    case RopeScaling::kLong: {
      const auto& factors = positions > rope.original_positions ? rope.long_factors : rope.short_factors;
      return 1.0 / (at::tensor(factors, f32()) * powers(rope.theta, rope.dim));
    }
  }
  COPPICE_CHECK(false, "scaling ", static_cast<int>(rope.scaling));
}

}  // namespace

std::pair<at::Tensor, at::Tensor> rotary_angles(const Rope& rope, int64_t positions) {
  const auto angle_SR = at::outer(at::arange(positions, f32()), frequencies(rope, positions));
  const auto scaled = [&](const at::Tensor& x) { return rope.attention_factor == 1 ? x : x * rope.attention_factor; };
  return {scaled(at::cos(angle_SR)), scaled(at::sin(angle_SR))};
}

std::pair<at::Tensor, at::Tensor> AngleCache::of(int64_t positions) {
  const std::lock_guard lock(mutex_);
  if (positions_ != positions) {
    const auto [cos_SR, sin_SR] = rotary_angles(rope_, positions);
    angles_SR_ = {to_device(cos_SR, device_), to_device(sin_SR, device_)};
    positions_ = positions;
  }
  return angles_SR_;
}

}  // namespace coppice::nn::detail
