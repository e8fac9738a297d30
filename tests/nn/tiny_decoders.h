#pragma once

#include <string_view>

#include "tests/testing/tiny_models.h"

namespace coppice::nn {

inline constexpr models::ModelSizes kSizes{.vocab_size = 61,
                                           .model_dim = 32,
                                           .num_layers = 3,
                                           .num_heads = 4,
                                           .num_kv_heads = 2,
                                           .head_dim = 8,
                                           .num_experts = 6,
                                           .top_k = 2,
                                           .expert_width = 20,
                                           .dense_width = 28,
                                           .max_positions = 64};

/// The same, with a shared expert where the family has one.
inline models::ModelSizes sizes_of(std::string_view family) {
  auto sizes = kSizes;
  if (families::family_of(family).has_shared()) sizes.shared_width = sizes.expert_width;
  return sizes;
}

}  // namespace coppice::nn
