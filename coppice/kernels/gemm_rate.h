#pragma once

#include <c10/core/ScalarType.h>

namespace coppice::kernels {

/// The speed of one large matrix product (1024 x 1024 x 1024), the best of several runs: the upper limit for a training
/// step.
///
/// Units    floating-point operations per second, a multiplication and an addition count as two. Takes about 0.1 s.
/// Threads  at::get_num_threads().
double gemm_rate(c10::ScalarType dtype);

}  // namespace coppice::kernels
