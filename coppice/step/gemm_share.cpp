#include "coppice/step/gemm_share.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>

namespace coppice::step {

double flops_per_token(const nn::Decoder& model, int64_t positions) {
  using families::Role;
  const auto& config = model.config();
  double weights = 0;
  for (const nn::Parameter& p : model.parameters()) {
    if (!p.decays()) continue;  // norms and biases
    if (p.role == Role::kEmbedding && !config.tied) continue;
    const auto elements = static_cast<double>(p.master.numel());
    weights += p.is_experts() ? elements * static_cast<double>(config.top_k) / static_cast<double>(config.num_experts)
                              : elements;
  }
  // Two products over half of the positions, 2 operations each.
  const auto attention = static_cast<double>(2 * config.num_layers * config.num_heads * config.head_dim * positions);
  return 6 * weights + 3 * attention;
}

double gemm_rate(c10::ScalarType dtype) {
  constexpr int64_t kSize = 1024;
  constexpr int kTries = 6;  // the first finds its kernel
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

}  // namespace coppice::step
