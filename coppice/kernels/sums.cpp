#include "coppice/kernels/sums.h"

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/sums_detail.h"

namespace coppice::kernels {

at::Tensor sum_of_squares(const at::Tensor& values) {
  COPPICE_CHECK(values.is_contiguous());
  return detail::pick(values, cpu::sum_of_squares, aten::sum_of_squares)(values.detach());
}

at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b) {
  COPPICE_CHECK(a.sizes() == b.sizes() && a.is_contiguous() && b.is_contiguous());
  return detail::pick(a, cpu::expert_dot, aten::expert_dot)(a.detach(), b.detach());
}

}  // namespace coppice::kernels
