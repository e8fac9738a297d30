#include "coppice/kernels/head_loss.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/device_detail.h"
#include "coppice/kernels/head_loss_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

detail::HeadForward forward_of(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T,
                               bool with_gradients, bool with_weight_gradient) {
  COPPICE_CHECK(x_TD.dim() == 2 && w_VD.dim() == 2 && x_TD.size(1) == w_VD.size(1));
  COPPICE_CHECK(target_T.scalar_type() == at::kLong && target_T.numel() == x_TD.size(0));
  return detail::pick(x_TD, cpu::head_forward, aten::head_forward)(
      {x_TD.contiguous(), w_VD.contiguous(), target_T.contiguous().view({-1}), with_gradients, with_weight_gradient});
}

struct HeadLoss : torch::autograd::Function<HeadLoss> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& w_VD,
                            const at::Tensor& target_T, bool with_gradients, bool with_weight_gradient) {
    auto out = forward_of(x_TD, w_VD, target_T, with_gradients, with_weight_gradient);
    if (with_gradients) {
      ctx->saved_data["x"] = std::move(out.grad_x_TD);
      if (with_weight_gradient) ctx->saved_data["w"] = std::move(out.grad_w_VD);
    }
    return out.mean;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    COPPICE_CHECK(!ctx->saved_data.empty(), "head_loss is differentiable once");
    auto grad_x = ctx->saved_data["x"].toTensor();
    const auto kept = ctx->saved_data.find("w");
    auto grad_w = kept == ctx->saved_data.end() ? at::Tensor() : kept->second.toTensor();
    ctx->saved_data.clear();  // so that the parameter's gradient reuses the memory instead of copying it
    const auto scale = detail::pick(grad_x, cpu::scale_in_place, aten::scale_in_place);
    scale(grad_x, grads[0]);
    if (grad_w.defined()) scale(grad_w, grads[0]);
    return {std::move(grad_x), std::move(grad_w), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor head_loss(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T) {
  const bool with_gradients = at::GradMode::is_enabled() && (x_TD.requires_grad() || w_VD.requires_grad());
  return HeadLoss::apply(x_TD, w_VD, target_T, with_gradients, with_gradients && w_VD.requires_grad());
}

at::Tensor head_token_losses(const at::Tensor& x_TD, const at::Tensor& w_VD, const at::Tensor& target_T) {
  at::NoGradGuard no_grad;
  return forward_of(x_TD, w_VD, target_T, false, false).loss_T;
}

}  // namespace coppice::kernels
