#include <ATen/ops/arange.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <optional>

#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::aten {
namespace {

/// The keys that each query sees, [B, 1, S, S].
at::Tensor sight(const at::Tensor& start_BS) {
  const auto position_S = at::arange(start_BS.size(1), start_BS.options());
  const auto query_S1 = position_S.unsqueeze(1);
  return at::logical_and(position_S <= query_S1, position_S >= start_BS.unsqueeze(2)).unsqueeze(1);
}

}  // namespace

at::Tensor causal_attention(const detail::AttentionInputs& in) {
  const bool grouped = in.query_BSHC.size(2) != in.key_BSJC.size(2);
  const auto mask = in.start_BS.defined() ? std::optional(sight(in.start_BS)) : std::nullopt;
  return at::scaled_dot_product_attention(in.query_BSHC.transpose(1, 2), in.key_BSJC.transpose(1, 2),
                                          in.value_BSJC.transpose(1, 2), mask, /*dropout_p=*/0.0, /*is_causal=*/!mask,
                                          in.scale, /*enable_gqa=*/grouped)
      .transpose(1, 2);
}

}  // namespace coppice::kernels::aten
