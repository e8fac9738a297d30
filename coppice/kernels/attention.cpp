#include "coppice/kernels/attention.h"

#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include "coppice/base/check.h"
#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& query_BSHC, const at::Tensor& key_BSJC,
                            const at::Tensor& value_BSJC, double scale) {
    const detail::AttentionInputs in{query_BSHC, key_BSJC, value_BSJC, scale};
    auto out = detail::attention_forward_avx512(in);
    ctx->save_for_backward({query_BSHC, key_BSJC, value_BSJC, out.out_BSHC, out.log_sum_BHS});
    ctx->saved_data["scale"] = scale;
    return out.out_BSHC;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto g = detail::attention_backward_avx512({saved[0], saved[1], saved[2], ctx->saved_data["scale"].toDouble()},
                                               {saved[3], saved[4]}, grads[0].contiguous());
    return {g.query_BSHC, g.key_BSJC, g.value_BSJC, at::Tensor()};
  }
};

}  // namespace

at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale) {
  COPPICE_CHECK(query_BSHC.dim() == 4 && key_BSJC.sizes() == value_BSJC.sizes());
  const auto query = query_BSHC.contiguous(), key = key_BSJC.contiguous(), value = value_BSJC.contiguous();
  if (detail::has_avx512_attention({query, key, value, scale})) return CausalAttention::apply(query, key, value, scale);
  const bool grouped = query.size(2) != key.size(2);
  return at::scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
                                          /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true, scale,
                                          /*enable_gqa=*/grouped)
      .transpose(1, 2);
}

}  // namespace coppice::kernels
