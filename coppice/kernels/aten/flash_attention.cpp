// libtorch's FlashAttention over documents of different lengths. A sink is not known to it: it gives the log of the sum
// of a query's exponentials, from which the share of the sink follows, and its backward pass takes the probabilities
// from the sum that it is given, so with the sink's share in it. T = B * S tokens, N documents.

#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <tuple>

#include "coppice/kernels/attention_detail.h"

namespace coppice::kernels::aten {
namespace {

using detail::AttentionForward;
using detail::AttentionGradients;
using detail::AttentionInputs;

constexpr int64_t kMostDim = 256, kDimQuantum = 8;

/// What both passes are called with.
struct Flash {
  at::Tensor query_THC, key_TJC, value_TJC;
  at::Tensor first_token;
  int64_t longest;
  int64_t left;                         ///< positions before a query's own that it sees; -1: all
  static constexpr int64_t kRight = 0;  ///< positions after it

  explicit Flash(const AttentionInputs& in)
      : query_THC(in.query_BSHC.flatten(0, 1)),
        key_TJC(in.key_BSJC.flatten(0, 1)),
        value_TJC(in.value_BSJC.flatten(0, 1)),
        first_token(in.sight.documents.first_token),
        longest(in.sight.documents.longest),
        left(in.sight.window > 0 ? in.sight.window - 1 : -1) {
    if (in.sight.documents.exist()) return;
    longest = in.query_BSHC.size(1);
    first_token = at::arange(0, query_THC.size(0) + 1, longest, in.query_BSHC.options().dtype(at::kInt));
  }
};

at::Tensor sink_H1(const AttentionInputs& in) { return in.sight.sink_H.to(at::kFloat).unsqueeze(1); }

AttentionForward forward(const AttentionInputs& in) {
  const Flash flash(in);
  auto [out_THC, log_sum_HT, rng_state, unused, debug_mask] = at::_flash_attention_forward(
      flash.query_THC, flash.key_TJC, flash.value_TJC, flash.first_token, flash.first_token, flash.longest,
      flash.longest, /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, in.scale, flash.left,
      Flash::kRight);
  if (in.sight.sink_H.defined()) {
    const auto all_HT = at::logaddexp(log_sum_HT, sink_H1(in));
    const auto share_TH1 = (log_sum_HT - all_HT).exp().t().unsqueeze(2);
    out_THC = (out_THC * share_TH1).to(out_THC.scalar_type());
    log_sum_HT = all_HT;
  }
  return {out_THC.view(in.query_BSHC.sizes()), log_sum_HT};
}

AttentionGradients backward(const AttentionInputs& in, const AttentionForward& kept, const at::Tensor& grad_BSHC) {
  const Flash flash(in);
  const auto out_THC = kept.out_BSHC.flatten(0, 1), grad_THC = grad_BSHC.flatten(0, 1);
  const auto options = grad_THC.options();
  // Both are read only with dropout.
  const auto rng_state = at::zeros({2}, options.dtype(at::kUInt64)), unused = at::empty({0}, options);
  const auto [query, key, value] = at::_flash_attention_backward(
      grad_THC, flash.query_THC, flash.key_TJC, flash.value_TJC, out_THC, kept.log_sum, flash.first_token,
      flash.first_token, flash.longest, flash.longest, /*dropout_p=*/0.0, /*is_causal=*/true, rng_state, unused,
      in.scale, flash.left, Flash::kRight);
  AttentionGradients out{query.view(in.query_BSHC.sizes()), key.view(in.key_BSJC.sizes()),
                         value.view(in.value_BSJC.sizes())};
  if (in.sight.sink_H.defined()) {
    const auto inner_HT = (grad_THC.to(at::kFloat) * out_THC.to(at::kFloat)).sum(2).t();
    out.sink_H = -((sink_H1(in) - kept.log_sum).exp() * inner_HT).sum(1).to(in.sight.sink_H.scalar_type());
  }
  return out;
}

}  // namespace

bool fits_flash(const AttentionInputs& in) {
  const int64_t dim = in.query_BSHC.size(3);
  return in.query_BSHC.scalar_type() == at::kBFloat16 && dim % kDimQuantum == 0 && dim <= kMostDim &&
         in.query_BSHC.numel() > 0 &&
         in.query_BSHC.size(0) * in.query_BSHC.size(1) < std::numeric_limits<int32_t>::max();
}

const detail::AttentionVariant kAttentionByFlash{forward, backward};

}  // namespace coppice::kernels::aten
