#include "coppice/step/gemm_share.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>

#include "coppice/nn/host.h"

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

double gemm_rate(c10::ScalarType dtype, at::Device device) {
  constexpr int64_t kSmallest = 1024, kLargest = 8192;
  constexpr int kTries = 6;  // the first finds its kernel
  constexpr double kLong = 1e-3;
  const at::NoGradGuard no_grad;
  double rate = 0;
  for (int64_t size = kSmallest; size <= kLargest; size *= 2) {
    const auto a = at::ones({size, size}, at::TensorOptions().dtype(dtype).device(device)), b = a.clone();
    double best_s = 1e9;
    for (int i = 0; i < kTries; ++i) {
      const auto start = std::chrono::steady_clock::now();
      (void)nn::number(at::linear(a, b)[0][0]);  // waits for the device
      best_s = std::min(best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    const auto edge = static_cast<double>(size);
    rate = 2 * edge * edge * edge / best_s;
    if (best_s >= kLong) break;
  }
  return rate;
}

}  // namespace coppice::step
