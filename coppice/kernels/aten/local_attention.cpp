#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::aten {
namespace {

/// The mask that is added to scores: 0 if the query sees the key, otherwise -infinity.
at::Tensor make_mask(int64_t positions, int64_t window, const at::Tensor& start_BS, const at::TensorOptions& options) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  const auto hidden = at::full({positions, positions}, kHidden, options);
  auto mask = hidden.triu(1);
  if (window > 0) mask = mask + hidden.tril(-window);
  if (!start_BS.defined()) return mask;
  const auto before_BSS = at::arange(positions, start_BS.options()) < start_BS.unsqueeze(2);
  return mask.masked_fill(before_BSS, kHidden).unsqueeze(1);
}

}  // namespace

at::Tensor local_attention(const detail::AttentionInputs& in, int64_t window, const at::Tensor& sink_H) {
  auto query = in.query_BSHC, key = in.key_BSJC, value = in.value_BSJC;
  const int64_t batch = query.size(0), positions = query.size(1), heads = query.size(2);
  const int64_t groups = key.size(2), width = query.size(3);
  auto mask = make_mask(positions, window, in.start_BS, query.options());
  if (sink_H.defined()) {
    // Adds one key with value 0, and one dimension in which only this key is 1 and each query is its head's sink.
    const auto score_H = (sink_H / in.scale).to(query.scalar_type()).view({1, 1, heads, 1});
    query = at::cat({query, score_H.expand({batch, positions, heads, 1})}, 3);
    const auto plain = at::zeros({batch, 1, groups, width}, key.options());
    const auto sink = at::cat({plain, at::ones({batch, 1, groups, 1}, key.options())}, 3);
    key = at::cat({at::constant_pad_nd(key, {0, 1}), sink}, 1);
    value = at::constant_pad_nd(value, {0, 1, 0, 0, 0, 1});
    mask = at::constant_pad_nd(mask, {0, 1});
  }
  const auto out = at::scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
                                                    mask, /*dropout_p=*/0.0, /*is_causal=*/false, in.scale,
                                                    /*enable_gqa=*/heads != groups);
  return out.transpose(1, 2).narrow(3, 0, width);
}

}  // namespace coppice::kernels::aten
