#include "coppice/train/step_flops.h"

namespace coppice::train {

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

}  // namespace coppice::train
