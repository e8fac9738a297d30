#include "coppice/score/expert_sums.h"

#include <ATen/Parallel.h>

#include <array>

#include "coppice/base/check.h"

namespace coppice::score {

double dot(std::span<const float> a, std::span<const float> b) {
  constexpr size_t kLanes = 16;
  std::array<double, kLanes> lanes{};
  size_t i = 0;
  for (; i + kLanes <= a.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  }
  for (size_t j = 0; i < a.size(); ++i, ++j) lanes[j] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

std::vector<double> expert_dot(const at::Tensor& a, const at::Tensor& b) {
  COPPICE_CHECK(a.sizes() == b.sizes() && a.is_contiguous() && b.is_contiguous());
  const int64_t experts = a.size(0);
  const auto size = static_cast<size_t>(a.numel() / experts);
  std::vector<double> out(static_cast<size_t>(experts));
  at::parallel_for(0, experts, 1, [&](int64_t begin, int64_t end) {
    for (auto e = static_cast<size_t>(begin); e < static_cast<size_t>(end); ++e) {
      const auto values = [&](const at::Tensor& t) { return std::span(t.const_data_ptr<float>() + e * size, size); };
      out[e] = dot(values(a), values(b));
    }
  });
  return out;
}

}  // namespace coppice::score
