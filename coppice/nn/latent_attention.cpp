// Multi-head latent attention. H heads, C head dimension of queries and keys, V of values.
// Source: DeepSeek-V2, arXiv:2405.04434 section 2.1.

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/linear.h>

#include <algorithm>

#include "coppice/kernels/rms_norm.h"
#include "coppice/nn/block_detail.h"

namespace coppice::nn::detail {
namespace {

using families::Role;

// Transformers uses this value for the norms of latents, whatever the configuration.
constexpr double kLatentEpsilon = 1e-6;

at::Tensor query(const families::LatentAttention& latent, const LayerWeights& weights, const at::Tensor& x_TD) {
  if (latent.query_rank == 0) return at::linear(x_TD, weights[Role::kQuery]);
  const auto down = at::linear(x_TD, weights[Role::kQueryDown], weights[Role::kQueryDownBias]);
  return at::linear(kernels::rms_norm(down, weights[Role::kQueryLatentNorm], kLatentEpsilon), weights[Role::kQueryUp]);
}

at::Tensor filled_up(const at::Tensor& x, int64_t width) {
  return x.size(-1) == width ? x : at::constant_pad_nd(x, {0, width - x.size(-1)});
}

}  // namespace

at::Tensor latent_attention(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD) {
  const auto& config = *context.config;
  const auto& latent = *config.latent;
  const int64_t positions = context.positions, batch = x_TD.size(0) / positions, heads = config.num_heads;
  const auto split = [&](const at::Tensor& x, int64_t parts) { return x.view({batch, positions, parts, -1}); };

  const auto query_BSHC = split(query(latent, weights, x_TD), heads);
  const auto turned_query_BSHC = turn(context, query_BSHC.narrow(3, latent.plain_dim, latent.turned_dim));

  const auto down = at::linear(x_TD, weights[Role::kKeyValueDown], weights[Role::kKeyValueDownBias]);
  const auto turned_key_BS1C =
      turn(context, split(down.narrow(1, latent.key_value_rank, latent.turned_dim).contiguous(), 1));
  const auto normed = kernels::rms_norm(down.narrow(1, 0, latent.key_value_rank).contiguous(),
                                        weights[Role::kKeyValueLatentNorm], kLatentEpsilon);
  const auto up_BSHX = split(at::linear(normed, weights[Role::kKeyValueUp]), heads);

  // The kernels require the same width of queries, keys and values; padding with zeros changes no sum.
  const int64_t width = std::max(config.head_dim, latent.value_dim);
  const auto all_query = at::cat({query_BSHC.narrow(3, 0, latent.plain_dim), turned_query_BSHC}, 3);
  const auto all_key = at::cat(
      {up_BSHX.narrow(3, 0, latent.plain_dim), turned_key_BS1C.expand({batch, positions, heads, latent.turned_dim})},
      3);
  const auto value_BSHV = up_BSHX.narrow(3, latent.plain_dim, latent.value_dim);
  return attend(context, weights, filled_up(all_query, width), filled_up(all_key, width), filled_up(value_BSHV, width));
}

}  // namespace coppice::nn::detail
