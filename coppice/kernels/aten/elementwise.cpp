#include <ATen/ops/cat.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>

#include "coppice/kernels/aten/widened_detail.h"
#include "coppice/kernels/elementwise_detail.h"

namespace coppice::kernels::aten {

detail::RmsNormForward rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const auto x_wide = widened(x);
  const auto scale = at::rsqrt(x_wide.square().mean(-1, /*keepdim=*/true) + epsilon);
  const auto normed = (x_wide * scale).to(weight.scalar_type());  // rounded to the coarser dtype, or not at all
  return {(normed * weight).to(x.scalar_type()), scale.flatten()};
}

detail::RmsNormGradients rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_R,
                                           const at::Tensor& grad) {
  const int64_t width = weight.numel();
  const auto x_RD = widened(x).view({-1, width}), grad_RD = widened(grad).view({-1, width});
  const auto scale_R1 = scale_R.unsqueeze(1);
  const auto weighted_RD = grad_RD * weight;
  const auto pull_R1 = (weighted_RD * x_RD).sum(1, /*keepdim=*/true) * scale_R1.square() / static_cast<double>(width);
  const auto grad_x = (scale_R1 * (weighted_RD - x_RD * pull_R1)).to(x.scalar_type()).view(x.sizes());
  return {grad_x, (grad_RD * x_RD * scale_R1).sum(0).to(weight.scalar_type())};
}

at::Tensor rope(const at::Tensor& x_BSHD, const at::Tensor& cos, const at::Tensor& sin, double direction) {
  const int64_t positions = x_BSHD.size(1), half = cos.size(1);
  const auto of_heads = [&](const at::Tensor& angles) { return angles.view({-1, positions, 1, half}); };
  const auto c = of_heads(cos), s = of_heads(sin) * direction;
  const auto a = widened(x_BSHD.narrow(3, 0, half)), b = widened(x_BSHD.narrow(3, half, half));
  const auto dtype = x_BSHD.scalar_type();
  return at::cat(
      {(a * c - b * s).to(dtype), (b * c + a * s).to(dtype), x_BSHD.narrow(3, 2 * half, x_BSHD.size(3) - 2 * half)}, 3);
}

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up) {
  return (at::silu(widened(gate)) * up).to(gate.scalar_type());
}

detail::SwigluGradients swiglu_backward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& grad) {
  const auto g = widened(gate), d = widened(grad), s = at::sigmoid(g);
  return {(d * up * s * (1 + g * (1 - s))).to(gate.scalar_type()), (d * g * s).to(up.scalar_type())};
}

}  // namespace coppice::kernels::aten
