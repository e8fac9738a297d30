#include "coppice/matrix/factor_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "coppice/base/text.h"

namespace coppice::matrix {
namespace {

constexpr double kRounding = 0x1p-20;

/// F32 keeps 24 digits. BF16 has the exponents of F32, so a power of two loses nothing that matters.
bool may_lose(io::Dtype dtype, double factor) {
  if (factor == 1 || dtype == io::Dtype::kF32 || !io::is_float(dtype)) return false;
  return dtype != io::Dtype::kBf16 || !is_power_of_two(factor);
}

}  // namespace

double factor_loss(io::Dtype dtype, std::span<const std::byte> values, double factor) {
  if (!may_lose(dtype, factor)) return 0;
  constexpr size_t kBlock = size_t{1} << 16;
  const size_t width = io::dtype_bytes(dtype), count = values.size() / width;
  std::vector<float> before, after;
  std::vector<std::byte> stored;
  double error = 0, largest = 0;
  for (size_t first = 0; first < count; first += kBlock) {
    const size_t n = std::min(kBlock, count - first);
    before.resize(n);
    after.resize(n);
    stored.resize(n * width);
    io::to_f32(dtype, values.subspan(first * width, n * width), before);
    std::ranges::transform(before, after.begin(), [factor](float x) { return static_cast<float>(factor * x); });
    io::from_f32(dtype, after, stored);
    io::to_f32(dtype, stored, after);
    for (size_t i = 0; i < n; ++i) {
      if (!std::isfinite(before[i]) || !std::isfinite(after[i])) continue;
      error = std::max(error, std::abs(double{after[i]} / factor - double{before[i]}));
      largest = std::max(largest, std::abs(double{before[i]}));
    }
  }
  return error > kRounding * largest ? error / largest : 0;
}

bool is_power_of_two(double factor) {
  int exponent = 0;
  return std::frexp(factor, &exponent) == 0.5;
}

void WorstLoss::look(std::string_view tensor, io::Dtype dtype, std::span<const std::byte> values, double factor) {
  const double loss = factor_loss(dtype, values, factor);
  if (loss <= loss_) return;
  tensor_ = tensor;
  dtype_ = dtype;
  factor_ = factor;
  loss_ = loss;
}

std::string WorstLoss::text() const {
  if (loss_ == 0) return {};
  return cat("the values of '", tensor_, "' times ", number_text(factor_), " are rounded to ", io::dtype_name(dtype_),
             ", which changes them by up to ", number_text(loss_, 2),
             " of the largest (a checkpoint in F32 keeps them).");
}

}  // namespace coppice::matrix
