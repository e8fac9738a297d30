#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>

#include "coppice/kernels/adamw_detail.h"

namespace coppice::kernels::detail {

void adamw_step_libtorch(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                         const at::Tensor& grad, const at::Tensor& value, int64_t step, double grad_scale,
                         const AdamwSettings& s) {
  const at::NoGradGuard no_grad;
  const auto scaled = grad.to(at::kFloat) * grad_scale;
  at::_fused_adamw_({master}, {scaled}, {exp_avg}, {exp_avg_sq}, {}, {at::full({}, step, master.options())}, s.lr,
                    s.beta1, s.beta2, s.weight_decay, s.epsilon, /*amsgrad=*/false, /*maximize=*/false);
  if (value.defined()) at::Tensor(value).copy_(master);
}

}  // namespace coppice::kernels::detail
