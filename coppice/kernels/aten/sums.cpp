#include <ATen/ops/empty.h>

#include <algorithm>

#include "coppice/kernels/sums_detail.h"

namespace coppice::kernels::aten {
namespace {

constexpr int64_t kPiece = int64_t{1} << 24;  // numbers that exist in f64 at a time

at::Tensor sum_of_one(const at::Tensor& values) {
  const auto flat = values.view({-1});
  at::Tensor sum;
  for (int64_t begin = 0; begin == 0 || begin < flat.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, flat.numel() - begin);
    const auto piece = flat.narrow(0, begin, count).to(at::kDouble).square().sum();
    sum = sum.defined() ? sum.add_(piece) : piece;
  }
  return sum;
}

}  // namespace

at::Tensor sum_of_squares(std::span<const at::Tensor> values) {
  at::Tensor sum = sum_of_one(values.front());
  for (const at::Tensor& more : values.subspan(1)) sum.add_(sum_of_one(more));
  return sum;
}

at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b) {
  const int64_t experts = a.size(0);
  const auto a_EN = a.view({experts, -1}), b_EN = b.view({experts, -1});
  const int64_t numbers = std::max<int64_t>(1, a_EN.size(1)), at_a_time = std::max<int64_t>(1, kPiece / numbers);
  const auto out_E = at::empty({experts}, a.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < experts; begin += at_a_time) {
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, begin, std::min(at_a_time, experts - begin)); };
    part(out_E).copy_((part(a_EN).to(at::kDouble) * part(b_EN)).sum(1));
  }
  return out_E;
}

}  // namespace coppice::kernels::aten
