#pragma once

#include "coppice/nn/decoder.h"

namespace coppice::train {

/// Floating-point operations of the matrix products of one token's forward and backward pass: 6 for every weight that
/// it meets (top-K of the experts, the output layer, not the embedding), and causal attention's over `positions`.
/// Recomputation and everything that is not a product do not count.
double flops_per_token(const nn::Decoder& model, int64_t positions);

}  // namespace coppice::train
