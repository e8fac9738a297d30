#pragma once

#include <c10/core/ScalarType.h>

namespace coppice::kernels {

/// Rate of one large matrix product (1024 x 1024 x 1024), the best of several: what a training step could reach if it
/// were products alone.
///
/// Units    floating-point operations per second, a multiply and an add counting as two. Takes some 0.1 s.
/// Threads  at::get_num_threads().
double gemm_rate(c10::ScalarType dtype);

}  // namespace coppice::kernels
