#include "coppice/kernels/rms_norm.h"

#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/elementwise_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in, const at::Tensor& weight, double epsilon) {
    const auto x = x_in.contiguous();
    COPPICE_CHECK(x.size(-1) == weight.numel() && weight.is_contiguous());
    COPPICE_CHECK(weight.scalar_type() == x.scalar_type() || weight.scalar_type() == at::kFloat);
    const auto out = detail::pick(x, cpu::rms_norm_forward, aten::rms_norm_forward)(x, weight, epsilon);
    ctx->save_for_backward({x, weight, out.scale_R});
    return out.out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto backward = detail::pick(saved[0], cpu::rms_norm_backward, aten::rms_norm_backward);
    const auto grad = backward(saved[0], saved[1], saved[2], grads[0].contiguous());
    return {grad.x, grad.weight, at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return RmsNorm::apply(x, weight, epsilon);
}

}  // namespace coppice::kernels
