#pragma once

// The variants of RMSNorm, RoPE and SwiGLU, and of products of narrow matrices. Tensors are contiguous; results have the dtypes of what they belong to.

#include <ATen/core/Tensor.h>

namespace coppice::kernels {
namespace detail {

struct RmsNormForward {
  at::Tensor out;
  at::Tensor scale_R;  ///< 1 / sqrt(mean(x^2) + epsilon) of every row: f32, or f64 for an x in f64
};
struct RmsNormGradients {
  at::Tensor x, weight;
};
struct SwigluGradients {
  at::Tensor gate, up;
};

}  // namespace detail

namespace cpu {

detail::RmsNormForward rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double epsilon);
detail::RmsNormGradients rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_R,
                                           const at::Tensor& grad);

/// `direction` 1 rotates; -1 rotates back, which is also the gradient.
at::Tensor rope(const at::Tensor& x_BSHD, const at::Tensor& cos, const at::Tensor& sin, double direction);

at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up);
detail::SwigluGradients swiglu_backward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& grad);

/// Whether the functions below are for such matrices.
bool has_linear_for(const at::Tensor& x_TD, const at::Tensor& w_ND);
/// x w'; like those below in lanes, or of bf16 in f32 where that is faster.
at::Tensor linear_forward(const at::Tensor& x_TD, const at::Tensor& w_ND);
/// grad w, the gradient of x.
at::Tensor linear_grad_x(const at::Tensor& grad_TN, const at::Tensor& w_ND);
/// grad' x, the gradient of w.
at::Tensor linear_grad_w(const at::Tensor& grad_TN, const at::Tensor& x_TD);

}  // namespace cpu

// Memory of these: some temporaries of the size of x in f32.
namespace aten {

detail::RmsNormForward rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double epsilon);
detail::RmsNormGradients rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale_R,
                                           const at::Tensor& grad);
at::Tensor rope(const at::Tensor& x_BSHD, const at::Tensor& cos, const at::Tensor& sin, double direction);
at::Tensor swiglu_forward(const at::Tensor& gate, const at::Tensor& up);
detail::SwigluGradients swiglu_backward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& grad);

}  // namespace aten
}  // namespace coppice::kernels
