#pragma once

// One decoder layer as a pure function of its input and weights.
// B sequences, S positions, T = B * S tokens, D model dimension, E experts, R half of the rotary dimensions.

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>

#include "coppice/families/model_config.h"
#include "coppice/kernels/attention.h"
#include "coppice/nn/decoder.h"
#include "coppice/nn/expert_exchange.h"

namespace coppice::nn::detail {

/// The tensors of one layer by role; undefined if the layer has none.
class LayerWeights {
 public:
  at::Tensor& operator[](families::Role role) { return by_role_[static_cast<size_t>(role)]; }
  const at::Tensor& operator[](families::Role role) const { return by_role_[static_cast<size_t>(role)]; }
  std::array<at::Tensor, families::kNumRoles>& all() { return by_role_; }
  const std::array<at::Tensor, families::kNumRoles>& all() const { return by_role_; }

 private:
  std::array<at::Tensor, families::kNumRoles> by_role_;
};

/// What a layer needs besides its input and weights; the same in the forward pass and in recomputation.
struct BlockContext {
  const families::ModelConfig* config = nullptr;
  int64_t layer = 0;
  int64_t positions = 0;                     ///< S
  at::Tensor cos_SR, sin_SR;                 ///< f32; [T, R] if documents start inside sequences
  kernels::Documents documents;              ///< ForwardOptions::document_start_BS
  at::Tensor selection_bias_E;               ///< undefined if the layer has none
  const ExpertExchange* exchange = nullptr;  ///< null: all experts are here; outlives the backward pass
  kernels::MoeKernel kernel = kernels::MoeKernel::kFast;
  bool keep_routing = false, with_aux_loss = false, with_z_loss = false, with_output_sq = false;
  BalanceForm balance_form = BalanceForm::kPerLayer;
  std::shared_ptr<const LineageRouting> lineage;  ///< null: plain top-K
  uint64_t first_token = 0;                       ///< number of token 0 in the run
  std::function<void(int64_t layer, const at::Tensor& x_TD)> visit_feed_forward;
  std::function<void(int64_t layer, const Routed& routed)> visit_routing;
};

/// Differentiable outputs; the last two are undefined unless requested.
struct BlockOutput {
  at::Tensor x_TD;
  at::Tensor score_sum;  ///< [E], sum over tokens of `balancing_distribution`; [L] under lineage-unique routing
  at::Tensor z_loss;     ///< scalar
};

/// Fills `routing` for an MoE layer, if given.
BlockOutput run_block(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                      LayerRouting* routing);

/// The same function with bit-equal gradients, but only input and weights are kept for the backward pass, which
/// recomputes the rest.
///
/// Ranks    what a layer sends in the forward pass is sent again in the backward pass, before the gradients; as in
///          expert_exchange.h, in the same order on all ranks.
BlockOutput run_block_recomputed(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                                 LayerRouting* routing);

/// Attention of one layer, without the residual.
at::Tensor attention(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD);

/// The same for a family with latent attention.
at::Tensor latent_attention(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD);

/// The common end of both: attention over the positions that each query sees in this layer, then the output matrix.
///
/// Shapes   query_BSHC; key_BSJC; value_BSJC; returns [T, D].
at::Tensor attend(const BlockContext& context, const LayerWeights& weights, const at::Tensor& query_BSHC,
                  const at::Tensor& key_BSJC, const at::Tensor& value_BSJC);

/// Applies RoPE in either layout of pairs; in the result the two dimensions of a pair are half the rotary dimensions
/// apart.
at::Tensor turn(const BlockContext& context, const at::Tensor& x_BSHC);

}  // namespace coppice::nn::detail
