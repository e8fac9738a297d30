#include "coppice/kernels/sums.h"

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/sums_detail.h"

namespace coppice::kernels {

at::Tensor sum_of_squares(const at::Tensor& values) { return sum_of_squares({&values, 1}); }

at::Tensor sum_of_squares(std::span<const at::Tensor> values) {
  COPPICE_CHECK(!values.empty());
  const at::NoGradGuard no_grad;
  for (const at::Tensor& one : values) {
    COPPICE_CHECK(one.is_contiguous() && one.device() == values.front().device());
  }
  return detail::pick(values.front(), cpu::sum_of_squares, aten::sum_of_squares)(values);
}

at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b) {
  COPPICE_CHECK(a.sizes() == b.sizes() && a.is_contiguous() && b.is_contiguous());
  return detail::pick(a, cpu::expert_dot, aten::expert_dot)(a.detach(), b.detach());
}

}  // namespace coppice::kernels
