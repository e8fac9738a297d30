#include "coppice/matrix/factor_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace coppice::matrix {
namespace {

constexpr double kRounding = 0x1p-20;

/// F32 keeps 24 digits; BF16 has the exponents of F32, so that a power of two costs it nothing that counts.
bool may_lose(io::Dtype dtype, double factor) {
  if (factor == 1 || dtype == io::Dtype::kF32 || !io::is_float(dtype)) return false;
  int exponent = 0;
  return dtype != io::Dtype::kBf16 || std::frexp(factor, &exponent) != 0.5;
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

}  // namespace coppice::matrix
