#pragma once

// One decoder layer as a pure function of its input and weights.
// B sequences, S positions, T = B * S tokens, D model dimension, E experts, R half of the rotary dimensions.

#include <ATen/core/Tensor.h>

#include <array>

#include "coppice/families/model_config.h"
#include "coppice/nn/decoder.h"

namespace coppice::nn::detail {

/// The tensors of one layer by role; undefined where the layer has none.
class LayerWeights {
 public:
  at::Tensor& operator[](families::Role role) { return by_role_[static_cast<size_t>(role)]; }
  const at::Tensor& operator[](families::Role role) const { return by_role_[static_cast<size_t>(role)]; }
  std::array<at::Tensor, 32>& all() { return by_role_; }
  const std::array<at::Tensor, 32>& all() const { return by_role_; }

 private:
  std::array<at::Tensor, 32> by_role_;
};

/// What a layer needs besides its input and weights; the same in the forward pass and in recomputation.
struct BlockContext {
  const families::ModelConfig* config = nullptr;
  int64_t layer = 0;
  int64_t positions = 0;        ///< S
  at::Tensor cos_SR, sin_SR;    ///< f32
  at::Tensor selection_bias_E;  ///< undefined where the layer has none
  kernels::MoeKernel kernel = kernels::MoeKernel::kFast;
  bool keep_routing = false, with_aux_loss = false, with_z_loss = false, with_output_sq = false;
};

/// Differentiable outputs; the last two undefined unless asked for.
struct BlockOutput {
  at::Tensor x_TD;
  at::Tensor score_sum_E;  ///< sum over tokens of the router's scores
  at::Tensor z_loss;       ///< scalar
};

/// Fills `routing` for a MoE layer, if given.
BlockOutput run_block(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                      LayerRouting* routing);

/// The same function and the same gradients bit for bit, keeping only input and weights for the backward pass, which
/// computes the rest again.
BlockOutput run_block_recomputed(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD,
                                 LayerRouting* routing);

/// Attention of one layer, residual apart.
at::Tensor attention(const BlockContext& context, const LayerWeights& weights, const at::Tensor& x_TD);

}  // namespace coppice::nn::detail
