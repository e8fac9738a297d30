#pragma once

// The variants of the output layer with its cross-entropy. T tokens, D model dimension, V vocabulary.

#include <ATen/core/Tensor.h>

namespace coppice::kernels {
namespace detail {

struct HeadInputs {
  at::Tensor x_TD, w_VD, target_T;  ///< contiguous
  bool with_gradients = false, with_weight_gradient = false;
};
struct HeadForward {
  at::Tensor loss_T, mean;          ///< f32, or f64 for inputs in f64
  at::Tensor grad_x_TD, grad_w_VD;  ///< of the mean, in the dtypes of x and w; only if requested
};

}  // namespace detail

namespace cpu {

/// Throws   Error{kFormat} if a target is outside [-1, V).
detail::HeadForward head_forward(const detail::HeadInputs& in);
/// Multiplies by a scalar f32.
void scale_in_place(at::Tensor& values, const at::Tensor& factor);

}  // namespace cpu

namespace aten {

/// Logits exist for at most about 2^27 numbers at a time, in f32 and in the dtype of x. Nothing is read on the host.
///
/// Throws   c10::Error for a target outside [-1, V), from the operator that looks it up (on a GPU: when the host next
///          waits for it).
detail::HeadForward head_forward(const detail::HeadInputs& in);
/// The same, `rows` tokens at a time.
detail::HeadForward head_forward_by(const detail::HeadInputs& in, int64_t rows);
void scale_in_place(at::Tensor& values, const at::Tensor& factor);

}  // namespace aten
}  // namespace coppice::kernels
