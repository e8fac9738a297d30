#include "coppice/kernels/attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "coppice/base/check.h"
#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& query_BSHC, const at::Tensor& key_BSJC,
                            const at::Tensor& value_BSJC, double scale, const std::optional<at::Tensor>& start_BS) {
    const detail::AttentionInputs in{query_BSHC, key_BSJC, value_BSJC, scale, start_BS.value_or(at::Tensor())};
    auto out = detail::attention_forward_avx512(in);
    ctx->save_for_backward({query_BSHC, key_BSJC, value_BSJC, out.out_BSHC, out.log_sum_BHS, in.start_BS});
    ctx->saved_data["scale"] = scale;
    return out.out_BSHC;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const double scale = ctx->saved_data["scale"].toDouble();
    auto g = detail::attention_backward_avx512({saved[0], saved[1], saved[2], scale, saved[5]}, {saved[3], saved[4]},
                                               grads[0].contiguous());
    return {g.query_BSHC, g.key_BSJC, g.value_BSJC, at::Tensor(), at::Tensor()};
  }
};

/// The keys that each query sees, [B, 1, S, S].
at::Tensor sight(const at::Tensor& start_BS) {
  const auto position_S = at::arange(start_BS.size(1), start_BS.options());
  const auto query_S1 = position_S.unsqueeze(1);
  return at::logical_and(position_S <= query_S1, position_S >= start_BS.unsqueeze(2)).unsqueeze(1);
}

}  // namespace

at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const at::Tensor& start_BS) {
  COPPICE_CHECK(query_BSHC.dim() == 4 && key_BSJC.sizes() == value_BSJC.sizes());
  const auto query = query_BSHC.contiguous(), key = key_BSJC.contiguous(), value = value_BSJC.contiguous();
  COPPICE_CHECK(!start_BS.defined() || (start_BS.sizes() == query.sizes().slice(0, 2) && start_BS.is_contiguous()));
  if (detail::has_avx512_attention({query, key, value, scale, start_BS})) {
    // An undefined tensor cannot be an argument of an autograd function.
    return CausalAttention::apply(query, key, value, scale,
                                  start_BS.defined() ? std::optional(start_BS) : std::nullopt);
  }
  const bool grouped = query.size(2) != key.size(2);
  const auto mask = start_BS.defined() ? std::optional(sight(start_BS)) : std::nullopt;
  return at::scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask,
                                          /*dropout_p=*/0.0, /*is_causal=*/!mask, scale, /*enable_gqa=*/grouped)
      .transpose(1, 2);
}

}  // namespace coppice::kernels
