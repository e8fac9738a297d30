#include "coppice/kernels/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "coppice/base/check.h"
#include "coppice/kernels/attention_detail.h"
#include "coppice/kernels/device_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& query_BSHC, const at::Tensor& key_BSJC,
                            const at::Tensor& value_BSJC, double scale, const std::optional<at::Tensor>& start_BS) {
    const detail::AttentionInputs in{query_BSHC, key_BSJC, value_BSJC, scale, start_BS.value_or(at::Tensor())};
    auto out = cpu::attention_forward(in);
    ctx->save_for_backward({query_BSHC, key_BSJC, value_BSJC, out.out_BSHC, out.log_sum_BHS, in.start_BS});
    ctx->saved_data["scale"] = scale;
    return out.out_BSHC;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const double scale = ctx->saved_data["scale"].toDouble();
    auto g = cpu::attention_backward({saved[0], saved[1], saved[2], scale, saved[5]}, {saved[3], saved[4]},
                                     grads[0].contiguous());
    return {g.query_BSHC, g.key_BSJC, g.value_BSJC, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const at::Tensor& start_BS) {
  COPPICE_CHECK(query_BSHC.dim() == 4 && key_BSJC.sizes() == value_BSJC.sizes());
  const auto query = query_BSHC.contiguous(), key = key_BSJC.contiguous(), value = value_BSJC.contiguous();
  COPPICE_CHECK(!start_BS.defined() || (start_BS.sizes() == query.sizes().slice(0, 2) && start_BS.is_contiguous()));
  const detail::AttentionInputs in{query, key, value, scale, start_BS};
  if (!detail::takes_loops(query) || !cpu::has_attention_for(in)) return aten::causal_attention(in);
  // An undefined tensor cannot be an argument of an autograd function.
  return CausalAttention::apply(query, key, value, scale, start_BS.defined() ? std::optional(start_BS) : std::nullopt);
}

at::Tensor local_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                           double scale, int64_t window, const at::Tensor& sink_H, const at::Tensor& start_BS) {
  COPPICE_CHECK(query_BSHC.dim() == 4 && key_BSJC.sizes() == value_BSJC.sizes() && window >= 0);
  return aten::local_attention({query_BSHC, key_BSJC, value_BSJC, scale, start_BS}, window, sink_H);
}

}  // namespace coppice::kernels
