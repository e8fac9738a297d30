#pragma once

// The parts of a model outside its layers, shared by the decoder in memory and the one that loads a few layers at a
// time. B sequences, S positions, T = B * S tokens, V vocabulary, D model dimension.

#include <map>
#include <vector>

#include "coppice/nn/block_detail.h"
#include "coppice/nn/border.h"
#include "coppice/nn/rotary_detail.h"
#include "coppice/nn/router.h"

namespace coppice::nn::detail {

/// Throws   Error{kUnsupported} listing what `nn` does not support in this configuration, if anything.
void check_supported(const families::ModelConfig& config);

/// Throws   Error{kFormat} naming the first id outside the vocabulary.
void check_tokens(const at::Tensor& tokens_BS, int64_t vocabulary);

/// The same targets on `device`.
///
/// Throws   Error{kFormat} naming the first target that is neither -1 nor in the vocabulary.
at::Tensor checked_targets(const at::Tensor& target_T, int64_t vocabulary, at::Device device);

/// Fills tensors from a checkpoint, which must outlive the result.
TensorFill checkpoint_fill(const families::Model& model);

/// Checks that each start, if given, is the token's own position or the start of the token before.
void check_document_starts(const at::Tensor& start_BS, const at::Tensor& tokens_BS);

/// The weight that a layer uses: for centred norms 1 + value, in f32 (bf16 would round it to steps of 1/128).
at::Tensor weight_of(const Parameter& parameter);

/// Sets the angles of `context.positions` positions, or of every token if there are `context.documents`.
void set_rotary_angles(BlockContext& context, AngleCache& angles);

/// Rows of the embedding table as input of the first layer, [T, D] in the table's dtype; tokens come from the host.
///
/// Throws   Error{kFormat} naming the first id outside the vocabulary.
at::Tensor embed(const families::ModelConfig& config, const at::Tensor& table_VD, const at::Tensor& tokens_BS);

/// Consecutive layers [first, last). `parameters` has those of these layers and of no other; those of no layer are
/// passed over.
struct LayerRange {
  const families::ModelConfig& config;
  int64_t first = 0, last = 0;
  const std::vector<Parameter>& parameters;
  const std::map<int64_t, at::Tensor>& selection_bias;  ///< by layer
  AngleCache& angles;
  const ExpertExchanges& exchanges;  ///< of divided layers
  dist::Group* all = nullptr;        ///< ranks whose tokens balancing counts too; null: these tokens only
};
/// What the MoE layers give the balancing losses that ForwardOptions asks for.
struct BalanceTerms {
  std::vector<LayerBalance> layers;
  at::Tensor z_loss;  ///< scalar, summed over layers; undefined unless asked for
};
/// x after these layers; what the MoE layers did is appended to `routing`, if given, which `terms` take too.
///
/// Ranks    collective over the expert group if layers are divided. If `terms` are asked for with a balancing loss, also
///          over `all`: one sum of the counts of these layers, after the last.
/// Shapes   x_TD, B sequences of `positions` tokens; returns [T, D].
at::Tensor run_layers(const LayerRange& layers, const at::Tensor& x_TD, int64_t positions,
                      const ForwardOptions& options, std::vector<LayerRouting>* routing, BalanceTerms* terms = nullptr);

/// What the output layer takes, [T, D]: after the final norm, divided by the divisor of the logits.
at::Tensor to_head(const families::ModelConfig& config, const at::Tensor& norm_D, const at::Tensor& x_TD);

}  // namespace coppice::nn::detail
