#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {
namespace detail {

struct AttentionInputs {
  at::Tensor query_BSHC, key_BSJC, value_BSJC;  ///< contiguous
  double scale = 1;
  at::Tensor start_BS;  ///< int64, contiguous; undefined: 0
};
struct AttentionForward {
  at::Tensor out_BSHC;
  at::Tensor log_sum_BHS;  ///< f32: log of the sum of a query's exponentials
};
struct AttentionGradients {
  at::Tensor query_BSHC, key_BSJC, value_BSJC;
};

}  // namespace detail

namespace cpu {
/// Whether the variants below are for for such tensors of the CPU.
bool has_attention_for(const detail::AttentionInputs& in);
detail::AttentionForward attention_forward(const detail::AttentionInputs& in);
detail::AttentionGradients attention_backward(const detail::AttentionInputs& in,
                                              const detail::AttentionForward& forward, const at::Tensor& grad_BSHC);
}  // namespace cpu

// These are differentiable by themselves.
namespace aten {
at::Tensor causal_attention(const detail::AttentionInputs& in);
at::Tensor local_attention(const detail::AttentionInputs& in, int64_t window, const at::Tensor& sink_H);
}  // namespace aten

}  // namespace coppice::kernels
