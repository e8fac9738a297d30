#pragma once

// What stands around the layers, shared by the decoder in memory and the one that holds a few layers at a time.
// B sequences, S positions, T = B * S tokens, V vocabulary, D model dimension.

#include <map>
#include <vector>

#include "coppice/nn/block_detail.h"
#include "coppice/nn/border.h"
#include "coppice/nn/router.h"

namespace coppice::nn::detail {

/// Throws   Error{kUnsupported} listing what `nn` cannot compute of this configuration, if anything.
void check_supported(const families::ModelConfig& config);

/// Throws   Error{kFormat} naming the first id outside the vocabulary.
void check_tokens(const at::Tensor& tokens_BS, int64_t vocabulary);

/// Fills tensors from a checkpoint, which must outlive the result.
TensorFill checkpoint_fill(const families::Model& model);

/// Checks that each start, if there are any, is its own token's or the one of the token before.
void check_document_starts(const at::Tensor& start_BS, const at::Tensor& tokens_BS);

/// What a parameter's value stands for in a layer: centred norms multiply by 1 + value, in f32 (which bf16 would round
/// to steps of 1/128).
at::Tensor weight_of(const Parameter& parameter);

/// Sets the angles of `context.positions` positions, of every token where `context.start_BS` starts documents.
void set_rotary_angles(BlockContext& context);

/// Rows of the embedding table as the first layer takes them, [T, D] in the table's dtype.
at::Tensor embed(const families::ModelConfig& config, const at::Tensor& table_VD, const at::Tensor& tokens_BS);

/// Consecutive layers [first, last). `parameters` has those of these layers and of no other; those of no layer are
/// passed over.
struct LayerRange {
  const families::ModelConfig& config;
  int64_t first = 0, last = 0;
  const std::vector<Parameter>& parameters;
  const std::map<int64_t, at::Tensor>& selection_bias;  ///< by layer
};
/// What the MoE layers give the balancing losses that ForwardOptions asks for.
struct BalanceTerms {
  std::vector<LayerBalance> layers;
  at::Tensor z_loss;  ///< scalar, summed over layers; undefined unless asked for
};
/// x after these layers; what the MoE layers did is appended to `routing`, if given, which `terms` take too.
///
/// Shapes   x_TD, B sequences of `positions` tokens; returns [T, D].
at::Tensor run_layers(const LayerRange& layers, const at::Tensor& x_TD, int64_t positions,
                      const ForwardOptions& options, std::vector<LayerRouting>* routing, BalanceTerms* terms = nullptr);

/// What the output layer takes, [T, D]: after the final norm, divided by what the logits are divided by.
at::Tensor to_head(const families::ModelConfig& config, const at::Tensor& norm_D, const at::Tensor& x_TD);

}  // namespace coppice::nn::detail
