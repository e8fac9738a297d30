#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/io/dtype.h"

namespace coppice::models {

/// Sizes of a new model of any family. Dense families ignore the sizes of experts. In latent attention, the latents
/// have the width of four heads for queries and two for keys and values, and RoPE is applied to half of each head.
struct ModelSizes {
  std::string family = "glm4_moe";
  int64_t vocab_size = 256, model_dim = 64, num_layers = 2, num_heads = 4, num_kv_heads = 2, head_dim = 16;
  int64_t num_experts = 4, top_k = 2, expert_width = 32, dense_width = 128, shared_width = 0;
  int64_t first_dense_layers = 0;
  int64_t max_positions = 512;
  bool tied = false;
  std::optional<bool> renormalise = {};  ///< as the family does; true if it can do both
};

/// A config.json of that family that transformers 4 and 5 read in the intended way. Token ids (bos, eos, pad) are null.
///
/// Throws   Error{kUsage} if the sizes do not fit together or the family cannot have them.
Json make_config(const ModelSizes& sizes, io::Dtype dtype);

/// Weights of a new model: N(0, std) for matrices, 1 for norms (0 for centred ones), 0 for biases.
///
/// Random numbers are keyed by layer, role and expert, so the values do not depend on layout, order or number of
/// threads.
/// Memory   the result.
std::vector<float> random_values(const families::TensorSlot& slot, uint64_t seed, double std);

/// The dtype of a tensor in a checkpoint of `dtype`: F32 for selection biases, else `dtype`.
io::Dtype stored_dtype(families::Role role, io::Dtype dtype);

/// Writes a model directory with `random_values` in `dtype`; it appears complete or not at all.
///
/// Memory   one tensor in fp32 per thread.
/// Throws   Error{kUsage} if `directory` exists or `dtype` is not a floating-point type; what `read_config` throws;
///          Error{kIo}.
void write_random_model(const std::filesystem::path& directory, const Json& config, io::Dtype dtype, uint64_t seed,
                        double std = 0.02, uint64_t max_shard_bytes = uint64_t{5} << 30);

}  // namespace coppice::models
