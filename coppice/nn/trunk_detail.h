#pragma once

// What stands around the layers, shared by the decoder in memory and the one that holds a few layers at a time.
// B sequences, S positions, T = B * S tokens, V vocabulary, D model dimension.

#include "coppice/nn/block_detail.h"
#include "coppice/nn/border.h"

namespace coppice::nn::detail {

/// Throws   Error{kUnsupported} listing what `nn` cannot compute of this configuration, if anything.
void check_supported(const families::ModelConfig& config);

/// Throws   Error{kFormat} naming the first id outside the vocabulary.
void check_tokens(const at::Tensor& tokens_BS, int64_t vocabulary);

/// Fills tensors from a checkpoint, which must outlive the result.
TensorFill checkpoint_fill(const families::Model& model);

/// Sets the angles of `context.positions` positions.
void set_rotary_angles(BlockContext& context);

/// Rows of the embedding table, [T, D] in its dtype.
at::Tensor embed(const at::Tensor& table_VD, const at::Tensor& tokens_BS);

}  // namespace coppice::nn::detail
