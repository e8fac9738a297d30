// H query heads, J key and value heads, C head dimension.

#include "coppice/kernels/attention.h"

#include <ATen/ops/clamp.h>

#include <array>

#include "coppice/kernels/linear.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/kernels/rope.h"
#include "coppice/nn/block_detail.h"

namespace coppice::nn::detail {
namespace {

using families::QkNorm;
using families::Role;

/// Query, key and value before norms and positions, [T, heads * C] each.
std::array<at::Tensor, 3> project(const families::ModelConfig& config, const LayerWeights& weights,
                                  const at::Tensor& x_TD) {
  if (weights[Role::kQueryKeyValue].defined()) {
    const auto all = kernels::linear(x_TD, weights[Role::kQueryKeyValue]);
    const int64_t query = config.num_heads * config.head_dim, key = config.num_kv_heads * config.head_dim;
    const auto part = [&](int64_t begin, int64_t size) { return all.narrow(1, begin, size).contiguous(); };
    return {part(0, query), part(query, key), part(query + key, key)};
  }
  return {kernels::linear(x_TD, weights[Role::kQuery], weights[Role::kQueryBias]),
          kernels::linear(x_TD, weights[Role::kKey], weights[Role::kKeyBias]),
          kernels::linear(x_TD, weights[Role::kValue], weights[Role::kValueBias])};
}

}  // namespace

at::Tensor turn(const BlockContext& context, const at::Tensor& x_BSHC) {
  if (!context.config->rope.interleaved) return kernels::rope(x_BSHC, context.cos_SR, context.sin_SR);
  const int64_t width = x_BSHC.size(3);
  const auto apart = x_BSHC.unflatten(3, {width / 2, 2}).transpose(3, 4).reshape(x_BSHC.sizes());
  return kernels::rope(apart, context.cos_SR, context.sin_SR);
}

at::Tensor attend(const BlockContext& context, const LayerWeights& weights, const at::Tensor& query_BSHC,
                  const at::Tensor& key_BSJC, const at::Tensor& value_BSJC) {
  const auto& config = *context.config;
  const int64_t window = config.window[static_cast<size_t>(context.layer)];
  const kernels::Sight sight{window < context.positions ? window : 0, weights[Role::kSinks], context.documents};
  const auto out_BSHC = kernels::causal_attention(query_BSHC, key_BSJC, value_BSJC, config.attention_scale, sight);
  const int64_t width = config.dim(families::Dim::kValueRows) / config.num_heads;
  const auto merged =
      out_BSHC.narrow(3, 0, width).reshape({query_BSHC.size(0) * context.positions, config.num_heads * width});
  return kernels::linear(merged, weights[Role::kAttentionOutput], weights[Role::kAttentionOutputBias]);
}

at::Tensor attention(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD) {
  const auto& config = *context.config;
  const int64_t positions = context.positions, batch = x_TD.size(0) / positions;
  const auto norm = [&](const at::Tensor& x, Role role, QkNorm kind) {
    return config.qk_norm == kind ? kernels::rms_norm(x, weights[role], config.rms_eps) : x;
  };
  const auto clip = [&](const at::Tensor& x) {
    return config.clip_qkv ? at::clamp(x, -*config.clip_qkv, *config.clip_qkv) : x;
  };
  const auto split = [&](const at::Tensor& x, int64_t heads) {
    return x.view({batch, positions, heads, config.head_dim});
  };
  const auto turned = [&](const at::Tensor& x, Role norm_weight, int64_t heads) {
    const auto flat = clip(norm(x, norm_weight, QkNorm::kWhole));
    return turn(context, norm(split(flat, heads), norm_weight, QkNorm::kPerHead));
  };

  const auto [query, key, value] = project(config, weights, x_TD);
  return attend(context, weights, turned(query, Role::kQueryNorm, config.num_heads),
                turned(key, Role::kKeyNorm, config.num_kv_heads), split(clip(value), config.num_kv_heads));
}

}  // namespace coppice::nn::detail
