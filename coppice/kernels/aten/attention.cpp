#include <ATen/ops/scaled_dot_product_attention.h>

#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::aten {

at::Tensor plain_attention(const detail::AttentionInputs& in) {
  const bool grouped = in.query_BSHC.size(2) != in.key_BSJC.size(2);
  return at::scaled_dot_product_attention(in.query_BSHC.transpose(1, 2), in.key_BSJC.transpose(1, 2),
                                          in.value_BSJC.transpose(1, 2), /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                          /*is_causal=*/true, in.scale, /*enable_gqa=*/grouped)
      .transpose(1, 2);
}

}  // namespace coppice::kernels::aten
