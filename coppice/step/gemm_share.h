#pragma once

// The share of a step that its matrix products would take at the speed of one large product.

#include <c10/core/ScalarType.h>

#include "coppice/nn/decoder.h"

namespace coppice::step {

/// Floating-point operations of the matrix products of one token's forward and backward pass: 6 for every weight that
/// the token uses (top-K experts, the output layer, not the embedding), and causal attention over `positions`.
/// Recomputation and other operations do not count.
double flops_per_token(const nn::Decoder& model, int64_t positions);

/// The speed of one large matrix product, the best of several runs: the upper limit for a training step. The matrices
/// are square with 1024 rows, or as many times two as it takes to fill a millisecond.
///
/// Units    floating-point operations per second, a multiplication and an addition count as two. Takes about 0.1 s.
/// Threads  at::get_num_threads().
double gemm_rate(c10::ScalarType dtype, at::Device device);

}  // namespace coppice::step
