#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels::detail {

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

/// Whether this processor can run the AVX-512 variant on such tensors.
bool has_avx512_attention(const AttentionInputs& inputs);
AttentionForward attention_forward_avx512(const AttentionInputs& inputs);
AttentionGradients attention_backward_avx512(const AttentionInputs& inputs, const AttentionForward& forward,
                                             const at::Tensor& grad_BSHC);

}  // namespace coppice::kernels::detail
