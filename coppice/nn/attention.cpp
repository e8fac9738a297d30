// H query heads, J key and value heads, C head dimension.

#include "coppice/kernels/attention.h"

#include <ATen/ops/clamp.h>
#include <ATen/ops/linear.h>

#include <cmath>

#include "coppice/kernels/rms_norm.h"
#include "coppice/kernels/rope.h"
#include "coppice/nn/block_detail.h"

namespace coppice::nn::detail {
namespace {

using families::QkNorm;
using families::Role;

}  // namespace

at::Tensor attention(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD) {
  const auto& config = *context.config;
  const int64_t tokens = x_TD.size(0), positions = context.positions, batch = tokens / positions;
  const auto norm = [&](const at::Tensor& x, Role role, QkNorm kind) {
    return config.qk_norm == kind ? kernels::rms_norm(x, weights[role], config.rms_eps) : x;
  };
  const auto clip = [&](const at::Tensor& x) {
    return config.clip_qkv ? at::clamp(x, -*config.clip_qkv, *config.clip_qkv) : x;
  };
  const auto split = [&](const at::Tensor& x, int64_t heads) {
    return x.view({batch, positions, heads, config.head_dim});
  };
  const auto turned = [&](Role weight, Role bias, Role norm_weight, int64_t heads) {
    const auto flat = clip(norm(at::linear(x_TD, weights[weight], weights[bias]), norm_weight, QkNorm::kWhole));
    return kernels::rope(norm(split(flat, heads), norm_weight, QkNorm::kPerHead), context.cos_SR, context.sin_SR);
  };

  const auto query_BSHC = turned(Role::kQuery, Role::kQueryBias, Role::kQueryNorm, config.num_heads);
  const auto key_BSJC = turned(Role::kKey, Role::kKeyBias, Role::kKeyNorm, config.num_kv_heads);
  const auto value_BSJC =
      split(clip(at::linear(x_TD, weights[Role::kValue], weights[Role::kValueBias])), config.num_kv_heads);
  const double scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  const auto out_BSHC = kernels::causal_attention(query_BSHC, key_BSJC, value_BSJC, scale, context.start_BS);
  const auto merged = out_BSHC.reshape({tokens, config.num_heads * config.head_dim});
  return at::linear(merged, weights[Role::kAttentionOutput], weights[Role::kAttentionOutputBias]);
}

}  // namespace coppice::nn::detail
