#pragma once

// Rotary position embeddings as configurations describe them; `nn` computes the angles.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/family.h"

namespace coppice::families {

/// How the frequencies for a longer context are computed from the original ones.
enum class RopeScaling : uint8_t {
  kNone,
  kLinear,   ///< all divided by the factor
  kDynamic,  ///< a larger base once a sequence is longer than max_position_embeddings
  kYarn,     ///< low frequencies divided by the factor, high ones unchanged, with a ramp between; arXiv:2309.00071
  kLlama3,   ///< the same by wavelength
  kLong,     ///< longrope: a divisor for each frequency, others past the original length; arXiv:2402.13753
};

struct Rope {
  RopeScaling scaling = RopeScaling::kNone;
  double theta = 10000.0;
  int64_t dim = 0;  ///< number of rotary dimensions, the first of a head (latent attention: all of the rotary part)
  bool interleaved = false;  ///< the two dimensions of a pair are adjacent instead of half the dimensions apart
  double factor = 1;
  double attention_factor = 1;  ///< factor of cos and sin
  int64_t max_positions = 0, original_positions = 0;
  double beta_fast = 32, beta_slow = 1;              ///< yarn
  bool truncate = true;                              ///< yarn: its ramp begins and ends at whole dimensions
  double low_freq_factor = 1, high_freq_factor = 4;  ///< llama3
  std::vector<double> short_factors, long_factors;   ///< longrope, [dim / 2] each
  double softmax_factor = 1;                         ///< latent attention with yarn: factor of the softmax scale
};

struct RopeRead {
  Rope rope;
  std::vector<std::string> unsupported;
};

/// Reads both generations of transformers' files: `rope_parameters` (5), `rope_scaling` and keys at the top level (4).
/// `head_dim` is that of the rotary part.
///
/// Throws   Error{kFormat} naming file and key.
/// Source   modeling_rope_utils.py of transformers 5.17.0.
RopeRead read_rope(const Json& config, std::string_view source, const Family& family, int64_t head_dim,
                   int64_t max_positions);

}  // namespace coppice::families
