#include "coppice/kernels/adamw.h"

#include "coppice/base/check.h"
#include "coppice/kernels/adamw_detail.h"
#include "coppice/kernels/device_detail.h"

namespace coppice::kernels {

void adamw_step(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                const at::Tensor& grad, const at::Tensor& value, int64_t step, double grad_scale,
                const AdamwSettings& settings) {
  COPPICE_CHECK(step >= 1, "step ", step);
  for (const at::Tensor* t : {&master, &exp_avg, &exp_avg_sq, &grad}) {
    COPPICE_CHECK(t->is_contiguous() && t->sizes() == master.sizes() && t->device() == master.device());
    COPPICE_CHECK(t->scalar_type() == at::kFloat || t != &master);
  }
  COPPICE_CHECK(exp_avg.scalar_type() == exp_avg_sq.scalar_type());
  const bool separate = value.defined() && value.data_ptr() != master.data_ptr();
  if (separate) {
    COPPICE_CHECK(value.is_contiguous() && value.sizes() == master.sizes() && value.device() == master.device());
  }
  detail::pick(master, cpu::adamw_step, aten::adamw_step)(master, exp_avg, exp_avg_sq, grad,
                                                          separate ? value : at::Tensor(), step, grad_scale, settings);
}

}  // namespace coppice::kernels
