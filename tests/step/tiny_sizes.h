#pragma once

#include "tests/testing/tiny_models.h"

namespace coppice::step {

/// A model whose step takes milliseconds, with a number of experts that two and three ranks divide and four do not.
inline constexpr models::ModelSizes kSizes{.vocab_size = 32,
                                           .model_dim = 32,
                                           .num_layers = 3,
                                           .num_heads = 4,
                                           .num_kv_heads = 2,
                                           .head_dim = 8,
                                           .num_experts = 6,
                                           .top_k = 2,
                                           .expert_width = 16,
                                           .dense_width = 24,
                                           .max_positions = 64};

}  // namespace coppice::step
