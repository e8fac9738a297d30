#pragma once

#include "coppice/nn/decoder.h"

namespace coppice::train {

/// Floating-point operations of the matrix products of one token's forward and backward pass: 6 for every weight that
/// the token uses (top-K experts, the output layer, not the embedding), and causal attention over `positions`.
/// Recomputation and other operations do not count.
double flops_per_token(const nn::Decoder& model, int64_t positions);

}  // namespace coppice::train
