#include "coppice/kernels/gemm_rate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>

namespace coppice::kernels {

double gemm_rate(c10::ScalarType dtype) {
  constexpr int64_t kSize = 1024;
  constexpr int kTries = 6;  // the first one includes the search for a kernel
  const at::NoGradGuard no_grad;
  const auto a = at::ones({kSize, kSize}, at::TensorOptions().dtype(dtype)), b = a.clone();
  double best_s = 1e9;
  for (int i = 0; i < kTries; ++i) {
    const auto start = std::chrono::steady_clock::now();
    (void)at::linear(a, b);
    best_s = std::min(best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2.0 * kSize * kSize * kSize / best_s;
}

}  // namespace coppice::kernels
