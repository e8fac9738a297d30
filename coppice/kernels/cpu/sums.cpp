#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <span>
#include <vector>

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"
#include "coppice/kernels/sums_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kBlock = int64_t{1} << 16;

template <class T>
double block_sum(const T* x, int64_t count) {
  return lane_sum<double>(count, [x](int64_t i) {
    const auto value = static_cast<double>(load(x[i]));
    return value * value;
  });
}

}  // namespace

at::Tensor sum_of_squares(const at::Tensor& values) {
  const int64_t count = values.numel(), blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  with_scalar(values, [&]<class T>(T) {
    const T* x = values.const_data_ptr<T>();
    parallel_tasks(blocks, [&](int64_t b) {
      partial[static_cast<size_t>(b)] = block_sum(x + b * kBlock, std::min(kBlock, count - b * kBlock));
    });
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  return at::full({}, sum, values.options().dtype(at::kDouble));
}

at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b) {
  const int64_t experts = a.size(0);
  const auto size = static_cast<size_t>(a.numel() / experts);
  const auto out_E = at::empty({experts}, a.options().dtype(at::kDouble));
  auto* const out = out_E.mutable_data_ptr<double>();
  parallel_tasks(experts, [&](int64_t expert) {
    const auto e = static_cast<size_t>(expert);
    const auto values = [&](const at::Tensor& t) { return std::span(t.const_data_ptr<float>() + e * size, size); };
    out[e] = dot(values(a), values(b));
  });
  return out_E;
}

}  // namespace coppice::kernels::cpu
