#pragma once

#include <cstdint>
#include <filesystem>

#include "coppice/base/json.h"
#include "coppice/io/dtype.h"

namespace coppice::families {

/// Sizes of a model made from nothing, of any family of the table.
struct ModelSizes {
  std::string family = "glm4_moe";
  int64_t vocab_size = 256, model_dim = 64, num_layers = 2, num_heads = 4, num_kv_heads = 2, head_dim = 16;
  int64_t num_experts = 4, top_k = 2, expert_width = 32, dense_width = 128, shared_width = 0;
  int64_t first_dense_layers = 0;
  int64_t max_positions = 512;
  bool tied = false;
  bool renormalise = true;
};

/// A config.json of that family that transformers reads as meant. Throws Error{kUsage} if the sizes do not fit together.
Json make_config(const ModelSizes& sizes, io::Dtype dtype);

/// Writes a model directory with random weights: N(0, std) for matrices (keyed by tensor, so the same for any layout), 1 for norms, 0 for biases.
void write_random_model(const std::filesystem::path& directory, const Json& config, io::Dtype dtype, uint64_t seed,
                        double std = 0.02, uint64_t max_shard_bytes = uint64_t{5} << 30);

}  // namespace coppice::families
