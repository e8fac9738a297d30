#pragma once

// How near a step comes to one that is matrix products alone.

#include <c10/core/ScalarType.h>

#include "coppice/nn/decoder.h"

namespace coppice::step {

/// Floating-point operations of the matrix products of one token's forward and backward pass: 6 for every weight that
/// it meets (top-K of the experts, the output layer, not the embedding), and causal attention's over `positions`.
/// Recomputation and everything that is no product do not count.
double flops_per_token(const nn::Decoder& model, int64_t positions);

/// Rate of one large matrix product (1024 x 1024 x 1024), the best of several: what a training step could reach if it
/// were products alone.
///
/// Units    floating-point operations a second, a multiply and an add counting as two. Takes some 0.1 s.
/// Threads  at::get_num_threads().
double gemm_rate(c10::ScalarType dtype);

}  // namespace coppice::step
