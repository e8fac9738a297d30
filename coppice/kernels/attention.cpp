#include "coppice/kernels/attention.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/attention_detail.h"
#include "coppice/kernels/device_detail.h"

namespace coppice::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Null: libtorch's own operator is enough.
const detail::AttentionVariant* variant_for(const detail::AttentionInputs& in) {
  const bool sees_all = in.sight.window == 0 && !in.sight.sink_H.defined();
  const auto* const own = sees_all && detail::takes_loops(in.query_BSHC) ? cpu::attention_for(in) : nullptr;
  if (own != nullptr) return own;
  if (sees_all && !in.sight.documents.exist()) return nullptr;
  return detail::takes_flash(in.query_BSHC) && aten::fits_flash(in) ? &aten::kAttentionByFlash
                                                                    : &aten::kAttentionByBlocks;
}

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& query_BSHC, const at::Tensor& key_BSJC,
                            const at::Tensor& value_BSJC, const std::optional<at::Tensor>& sink_H, double scale,
                            int64_t window, const Documents* documents) {
    const detail::AttentionInputs in{
        query_BSHC, key_BSJC, value_BSJC, scale, {window, sink_H.value_or(at::Tensor()), *documents}};
    auto out = variant_for(in)->forward(in);
    ctx->save_for_backward({query_BSHC, key_BSJC, value_BSJC, in.sight.sink_H, out.out_BSHC, out.log_sum,
                            documents->start_BS, documents->here_BS, documents->first_token});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["window"] = window;
    ctx->saved_data["longest"] = documents->longest;
    return out.out_BSHC;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const detail::AttentionInputs in{saved[0],
                                     saved[1],
                                     saved[2],
                                     ctx->saved_data["scale"].toDouble(),
                                     {ctx->saved_data["window"].toInt(), saved[3],
                                      Documents{saved[6], saved[7], saved[8], ctx->saved_data["longest"].toInt()}}};
    auto g = variant_for(in)->backward(in, {saved[4], saved[5]}, grads[0].contiguous());
    return {g.query_BSHC, g.key_BSJC, g.value_BSJC, g.sink_H, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Documents find_documents(const at::Tensor& start_BS, at::Device device) {
  if (!start_BS.defined() || start_BS.numel() == 0) return {};
  COPPICE_CHECK(start_BS.device().type() == at::kCPU && start_BS.is_contiguous() && start_BS.dim() == 2);
  COPPICE_CHECK(start_BS.numel() <= std::numeric_limits<int32_t>::max());
  const auto* const start = start_BS.const_data_ptr<int64_t>();
  const int64_t tokens = start_BS.numel(), positions = start_BS.size(1);
  std::vector<int32_t> first;
  for (int64_t t = 0; t < tokens; ++t) {
    if (start[t] == t % positions) first.push_back(static_cast<int32_t>(t));
  }
  first.push_back(static_cast<int32_t>(tokens));

  Documents out{.start_BS = start_BS.to(device, /*non_blocking=*/true), .here_BS = start_BS, .first_token = {}};
  for (size_t i = 0; i + 1 < first.size(); ++i) {
    out.longest = std::max<int64_t>(out.longest, first[i + 1] - first[i]);
  }
  const auto count = static_cast<int64_t>(first.size());
  const auto here = at::empty({count}, at::TensorOptions().dtype(at::kInt).pinned_memory(start_BS.is_pinned()));
  std::copy(first.begin(), first.end(), here.mutable_data_ptr<int32_t>());
  out.first_token = here.to(device, /*non_blocking=*/true);
  return out;
}

at::Tensor causal_attention(const at::Tensor& query_BSHC, const at::Tensor& key_BSJC, const at::Tensor& value_BSJC,
                            double scale, const Sight& sight) {
  COPPICE_CHECK(query_BSHC.dim() == 4 && key_BSJC.sizes() == value_BSJC.sizes() && sight.window >= 0);
  const auto query = query_BSHC.contiguous(), key = key_BSJC.contiguous(), value = value_BSJC.contiguous();
  const auto& start_BS = sight.documents.start_BS;
  COPPICE_CHECK(!start_BS.defined() || (start_BS.sizes() == query.sizes().slice(0, 2) && start_BS.is_contiguous()));
  const detail::AttentionInputs in{query, key, value, scale, sight};
  if (variant_for(in) == nullptr) return aten::plain_attention(in);
  // An undefined tensor cannot be an argument of an autograd function.
  const auto sink_H = sight.sink_H.defined() ? std::optional(sight.sink_H) : std::nullopt;
  return CausalAttention::apply(query, key, value, sink_H, scale, sight.window, &sight.documents);
}

}  // namespace coppice::kernels
